"""Starting, telling and awaiting the process that seals one shard."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import tracelens
from tracelens.storage.jsonlines import dumps

FINISH_TIMEOUT_S = 600.0


class Sidecar:
    """``python -m tracelens.storage.sealing``, whose life hangs on a pipe from this process.

    When this process dies, however it dies, the pipe closes and the sidecar seals what is left.
    """

    def __init__(self, run_dir: Path, shard: str, mode: str) -> None:
        """Start the process.

        Raises:
            OSError: it cannot be started.
        """
        source = str(Path(tracelens.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", "tracelens.storage.sealing", str(run_dir), shard, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",  # `-m` looks in the working directory first: user files must not be found
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "TRACELENS": "0"},
            start_new_session=True,  # Ctrl-C ends the program; its trace is still to be sealed
        )

    @property
    def pid(self) -> int | None:
        """Process id, ``None`` once finished or abandoned."""
        return self._process.pid if self._process else None

    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def finish(self, state: str, dropped: int) -> bool:
        """Ask for the final seal and wait; return whether it succeeded.

        Args:
            state: final state of the shard.
            dropped: records that were never given a position because the ring was full.
        """
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return False
        with contextlib.suppress(OSError):
            process.stdin.write(dumps({"state": state, "dropped": dropped}).encode() + b"\n")
            process.stdin.close()
        try:
            return process.wait(FINISH_TIMEOUT_S) == 0
        except subprocess.TimeoutExpired:
            return False

    def abandon(self) -> None:
        """In a forked child: let go of the pipe, so that only the parent's death closes it."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                os.close(process.stdin.fileno())
            process.stdin = None
            process.returncode = 0  # not this process's child: nothing to wait for
