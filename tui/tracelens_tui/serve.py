"""The same screens in a browser: a local web server that asks for a token.

Textual's own server runs the application once for each visitor. Here it answers nobody who does
not hold the token of the URL, and its page asks no other host for anything.
"""

from __future__ import annotations

import logging
import re
import secrets
import shlex
import sys
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from pathlib import Path

import aiohttp_jinja2
import jinja2
from aiohttp import web
from textual_serve.server import Server

from tracelens.errors import EXIT_OK, TraceLensError
from tracelens.storage.reader import open_trace

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000

_OTHER_HOSTS = re.compile(r"<link[^>]*href=\"https?://[^>]*>", re.DOTALL)
_NO_OTHER_HOSTS = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ServeError(TraceLensError):
    """The address cannot be used."""


def address_of(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``:PORT`` or ``PORT``.

    Raises:
        ServeError: it is none of these.

    Examples:
        >>> address_of("8001"), address_of("localhost:0"), address_of("[::1]:80")
        (('127.0.0.1', 8001), ('localhost', 0), ('::1', 80))
    """
    host, colon, port = text.rpartition(":")
    if not colon and not text.isdecimal():
        host, port = text, str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65535:
        raise ServeError(f"--serve takes HOST:PORT, not {text!r}")
    return host.strip("[]") or DEFAULT_HOST, int(port)


class TokenServer(Server):
    """Textual's server behind a token, on one address.

    Args:
        command: runs the application.
        host: where to listen.
        port: likewise; must be free.
        token: what a request must hold, in the URL or, once it did, in a cookie.
    """

    def __init__(self, command: str, host: str, port: int, token: str) -> None:
        shown = f"[{host}]" if ":" in host else host
        super().__init__(
            command, host, port, title="tracelens", public_url=f"http://{shown}:{port}"
        )
        self._token = token
        self._cookie = f"tracelens-{port}"

    @property
    def url(self) -> str:
        """What to open in the browser."""
        return f"{self.public_url}/?token={self._token}"

    def serve(self, debug: bool = False) -> None:
        """Answer until interrupted; the URL is told once somebody listens at it."""
        logging.getLogger("aiohttp.access").disabled = True
        web.run_app(self._make_app(), host=self.host, port=self.port, print=self._announce)

    async def on_startup(self, app: web.Application) -> None:
        """Say nothing yet: nobody listens."""

    def _announce(self, *_: object) -> None:
        """Tell the URL: it is the only thing on stdout."""
        print(self.url, flush=True)  # noqa: T201
        print("ctrl+c ends the server", file=sys.stderr, flush=True)  # noqa: T201

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._guard(request, handler)

        app.middlewares.append(guard)
        # Textual's page asks a font server for a font: this page asks nobody but us.
        aiohttp_jinja2.setup(app, loader=jinja2.FunctionLoader(self._template))
        return app

    def _template(self, name: str) -> str:
        text = (Path(self.templates_path) / name).read_text(encoding="utf-8")
        return _OTHER_HOSTS.sub("", text)

    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.query.get("token") or request.cookies.get(self._cookie, "")
        if not compare_digest(given.encode(), self._token.encode()):
            return web.Response(status=403, text="403: open the URL that the server printed\n")
        # A page of another site must not drive the terminal with our visitor's cookie.
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return web.Response(status=403, text="403: asked from another site\n")
        response = await handler(request)
        if not response.prepared:
            response.headers["Content-Security-Policy"] = _NO_OTHER_HOSTS
            response.headers["Referrer-Policy"] = "no-referrer"
            response.headers["Cache-Control"] = "no-store"
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict")
        return response


def serve(path: str | None, *, at: int | None, address: str) -> int:
    """Serve a trace until interrupted.

    Args:
        path: the trace; the runs of the current directory if ``None``.
        at: id of the op to start at.
        address: ``HOST:PORT``; 127.0.0.1 is the only host that no one else can reach.

    Raises:
        TraceError: the trace cannot be opened.
        ServeError: the address is not one, or is in use.
    """
    host, port = address_of(address)
    if path is not None:
        open_trace(path).close()
    words = [sys.executable, "-m", "tracelens_tui", *([path] if path else [])]
    if at is not None:
        words += ["--at", str(at)]
    server = TokenServer(
        shlex.join(words), host, port or _free_port(host), secrets.token_urlsafe(24)
    )
    try:
        server.serve()
    except OSError as error:
        raise ServeError(f"{host}:{port} cannot be used: {error.strerror}") from error
    return EXIT_OK


def _free_port(host: str) -> int:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
