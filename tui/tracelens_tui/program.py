"""A program that runs beside the screens: its process, its output, its stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tracelens.control import Listener, Stopped
from tracelens_tui.texts import safe

_TAIL_BYTES = 64 << 10
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-_])")


class Program:
    """Starts a program; what it prints goes to a file beside the trace.

    Args:
        command: the words that start it.
        trace: the trace that it will write; the output goes to ``<trace>.log``.
        tell: called from another thread when it stops and waits for an answer.
    """

    def __init__(
        self, command: Sequence[str], trace: Path, tell: Callable[[Stopped], object]
    ) -> None:
        self.log = trace.with_name(trace.name + ".log")
        self._listener = Listener(tell)
        trace.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            # A session of its own: ctrl+c belongs to the screens.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._listener.environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """What it exited with; ``None`` while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def answer(self, *, go_on: bool) -> int:
        """Let it go on where it stands still, or end it; returns whether anything waited."""
        return self._listener.answer(go_on=go_on)

    def interrupt(self) -> None:
        """Interrupt it as ctrl+c does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code; ctrl+c interrupts it."""
        self._listener.close()
        while True:
            try:
                self._process.wait()
                return self.exit_code or 0
            except KeyboardInterrupt:
                self.interrupt()

    def output(self) -> list[str]:
        """Return the last lines it printed, without escape sequences."""
        try:
            with open(self.log, "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
                text = log.read(_TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return []
        # A progress bar writes over its line: what it wrote last is what counts.
        lines = (line.rpartition("\r")[2] for line in _ESCAPES.sub("", text).splitlines())
        return [safe(line.expandtabs()) for line in lines]
