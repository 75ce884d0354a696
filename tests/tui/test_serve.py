"""The browser's server: nobody gets in without the token."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, Request, build_opener, urlopen

import pytest

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("textual_serve")


@pytest.fixture
def url(nan_trace: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tracelens", "view", str(nan_trace), "--serve", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.send_signal(signal.SIGINT)
        server.wait(20)


def status(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_only_the_token_opens_the_page_and_the_page_asks_no_other_host(url: str) -> None:
    place = urlsplit(url)
    base = f"{place.scheme}://{place.netloc}"
    assert place.hostname == "127.0.0.1"

    assert status(base) == 403
    assert status(f"{base}/?token=wrong") == 403
    assert status(f"{base}/ws") == 403
    assert status(f"{base}/static/js/textual.js") == 403
    assert status(url, Origin="http://elsewhere.example") == 403
    opener = build_opener(HTTPCookieProcessor())
    with opener.open(url, timeout=10) as answer:
        page = answer.read().decode()
        policy = answer.headers["Content-Security-Policy"]
    assert "http" not in page.replace(base, "").replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'self'" in policy
    # The cookie that the page left lets its scripts in.
    with opener.open(f"{base}/static/js/textual.js", timeout=10) as answer:
        assert answer.status == 200


def test_the_terminal_comes_through_the_websocket_with_the_token_only(url: str) -> None:
    socket = url.replace("http://", "ws://").replace("/?", "/ws?")

    async def talk() -> bytes:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(socket.partition("?")[0])
            async with session.ws_connect(f"{socket}&width=100&height=30") as connection:
                seen = b""
                while b"aten::linear" not in seen:
                    message = await asyncio.wait_for(connection.receive(), 90)
                    seen += message.data if isinstance(message.data, bytes) else b""
                return seen

    assert b"aten::linear" in asyncio.run(talk())


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "here:there"])
def test_an_address_that_is_none_is_refused_in_one_line(nan_trace: Path, address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracelens", "view", str(nan_trace), f"--serve={address}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
