"""Which request is being answered: a context variable, and middleware that sets it.

The middleware speaks WSGI and ASGI, and Django's own protocol; it imports no web framework. A
context variable follows a request through threads and coroutines as the frameworks do, so
requests that are answered at the same time do not mix.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Environ = dict[str, Any]
Scope = MutableMapping[str, Any]

_MAX_LENGTH = 200
_NO_ID = "-"

_current: ContextVar[str] = ContextVar("tracelens_request", default="")
_numbers = itertools.count(1)


def current_request() -> str:
    """Return the name of the request that is being answered here, empty outside of one."""
    return _current.get()


@contextmanager
def request(name: object) -> Iterator[None]:
    """Name the request that is answered in this block; findings of guards tell it.

    Args:
        name: whatever finds the request again in your logs: an id, method and path. Control
            characters are replaced, and it is cut at 200 characters.

    Examples:
        >>> from tracelens.serving import current_request, request
        >>> with request("GET /predict 7f3a"):
        ...     print(current_request())
        GET /predict 7f3a
    """
    token = _current.set(_cleaned(str(name)))
    try:
        yield
    finally:
        _current.reset(token)


class WsgiMiddleware:
    """Names each request of a WSGI application (Flask, Django, Bottle …) for guards.

    The name is method, path and ``X-Request-ID``, or a number where the client sends none. The
    query is left out: it may hold what no log should.

    Args:
        app: the application.

    Examples:
        >>> def app(environ, start_response):
        ...     return [current_request().encode()]
        >>> environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a", "HTTP_X_REQUEST_ID": "7f3a"}
        >>> WsgiMiddleware(app)(environ, print)
        [b'GET /a (7f3a)']
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        name = _name_of(
            environ.get("REQUEST_METHOD"),
            f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}",
            environ.get("HTTP_X_REQUEST_ID"),
        )
        with request(name):
            body = self.app(environ, start_response)
        # A list is finished; anything else may call the model while the server reads it.
        return body if isinstance(body, list | tuple) else _Body(body, name)


class AsgiMiddleware:
    """Names each request of an ASGI application (FastAPI, Starlette, Django …) for guards.

    Args:
        app: the application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        """Answer a request."""
        if scope.get("type") not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope.get("headers") or ())
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        method = scope.get("method") or "WEBSOCKET"
        with request(_name_of(method, scope.get("path"), given)):
            await self.app(scope, receive, send)


def django_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Name each request of a Django project: an entry of ``MIDDLEWARE``, for WSGI and ASGI.

    Args:
        get_response: the next middleware or the view.
    """
    if inspect.iscoroutinefunction(get_response):

        async def answer_async(http: Any) -> Any:
            with request(_django_name(http)):
                return await get_response(http)

        return answer_async

    def answer(http: Any) -> Any:
        with request(_django_name(http)):
            return get_response(http)

    return answer


django_middleware.sync_capable = True  # type: ignore[attr-defined]
django_middleware.async_capable = True  # type: ignore[attr-defined]


class _Body:
    """What a WSGI application answers piece by piece, each piece made under the request's name."""

    def __init__(self, body: Iterable[bytes], name: str) -> None:
        self._body = body
        self._pieces = iter(body)
        self._name = name

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        with request(self._name):
            return next(self._pieces)

    def close(self) -> None:
        """Close what the application returned, as WSGI asks."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with request(self._name):
                close()


def _django_name(http: Any) -> str:
    return _name_of(http.method, http.path, http.META.get("HTTP_X_REQUEST_ID"))


def _name_of(method: object, path: object, given: object) -> str:
    return f"{method or _NO_ID} {path or '/'} ({given or f'#{next(_numbers)}'})"


def _cleaned(name: str) -> str:
    """Return a name that cannot break a log line or a terminal."""
    return "".join(c if c.isprintable() else "?" for c in name[:_MAX_LENGTH])
