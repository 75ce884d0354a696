"""How a program under ``tracelens run --live`` stands still and asks the face that shows it.

The face listens at a Unix socket in a directory that only its user can enter, and tells the
program where, with a token, in the environment. A stop sends one line of JSON and waits for one
word. A face that goes away lets the program go on: watching must not stop a training.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

VARIABLE = "TRACELENS_CONTROL"
"""Environment variable that holds the token and the socket's path, a space between."""

_MAX_LINE = 1 << 16
_GO_ON, _GIVE_UP = "go_on", "give_up"


def stand_still(report: str, op_id: int) -> bool | None:
    """Wait until the face that shows this program lets it go on, or ends it.

    Args:
        report: why it stopped.
        op_id: the op to look at first, -1 unknown.

    Returns:
        Whether the program may go on; at once ``None`` if no face shows it.
    """
    token, _, path = os.environ.get(VARIABLE, "").partition(" ")
    if not path:
        return None
    line = json.dumps({"token": token, "op_id": op_id, "report": report[: _MAX_LINE // 2]})
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.connect(path)
            channel.sendall(line.encode() + b"\n")
            answer = channel.makefile("r", encoding="utf-8").readline(_MAX_LINE).strip()
    except OSError:
        return None
    return answer != _GIVE_UP


@dataclass(frozen=True, slots=True)
class Stopped:
    """A program that stands still.

    Attributes:
        op_id: the op to look at first, -1 unknown.
        report: why it stopped.
    """

    op_id: int
    report: str


class Listener:
    """The face's end: hears of stops and answers them.

    Args:
        tell: called from a thread of the listener with each stop.
    """

    def __init__(self, tell: Callable[[Stopped], object]) -> None:
        self._tell = tell
        self._token = secrets.token_hex(16)
        self._folder = Path(tempfile.mkdtemp(prefix="tracelens-"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self._folder / "control"))
        self._socket.listen(4)
        self._waiting: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="tracelens-control", daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What the program's environment must hold."""
        return {VARIABLE: f"{self._token} {self._folder / 'control'}"}

    def answer(self, *, go_on: bool) -> int:
        """Let everything that stands still go on, or end it; return how many there were."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for channel in waiting:
            with contextlib.suppress(OSError):
                channel.sendall((_GO_ON if go_on else _GIVE_UP).encode() + b"\n")
            channel.close()
        return len(waiting)

    def close(self) -> None:
        """Listen no more; what stands still goes on."""
        self.answer(go_on=True)
        # Closing alone would leave the accepting thread in its call.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._socket.accept()
            except OSError:
                return
            stopped = self._hear(channel)
            if stopped is None:
                channel.close()
                continue
            with self._lock:
                self._waiting.append(channel)
            self._tell(stopped)

    def _hear(self, channel: socket.socket) -> Stopped | None:
        """Read a stop; ``None`` for whoever does not hold the token."""
        channel.settimeout(5.0)
        try:
            told = json.loads(channel.makefile("r", encoding="utf-8").readline(_MAX_LINE))
            token, op_id, report = str(told["token"]), int(told["op_id"]), str(told["report"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        channel.settimeout(None)
        return Stopped(op_id, report) if compare_digest(token, self._token) else None
