"""The process beside the training process: ``python -m tracelens.storage.sealing RUN SHARD``.

It ends when its standard input does: the training process has then closed the shard or is
dead, and everything that was committed gets sealed. Until there is something to seal it is an
idle interpreter that has imported neither NumPy nor Arrow.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.storage.sealer import Sealer

POLL_S = 0.02
RETRY_S = 2.0
"""Wait this long after a full disk."""


def main(arguments: list[str]) -> int:
    """Seal one shard until its writer is done. Status 1: its live files stay for ``repair``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    run_dir, shard, mode = Path(arguments[0]), arguments[1], arguments[2]
    if mode == "flight":
        _parent_is_done(None)
    from tracelens.storage.sealer import Sealer

    try:
        sealer = Sealer(run_dir, shard)
        if mode == "stream":
            _seal_until_done(sealer)
        last = _last_words()
        sealer.state.dropped += int(last.get("dropped", 0))
        sealer.finish(str(last.get("state", "killed")))
    except Exception:
        return 1
    return 0


def _seal_until_done(sealer: Sealer) -> None:
    pause = POLL_S
    while not _parent_is_done(pause):
        try:
            sealer.poll()
            pause = POLL_S
        except OSError:
            pause = RETRY_S


def _parent_is_done(seconds: float | None) -> bool:
    """Wait until the parent has written its last line or died; ``None`` waits for ever."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _last_words() -> dict[str, Any]:
    """Return the state that the parent asks for; nothing if it was killed."""
    try:
        line = json.loads(sys.stdin.readline())
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


if __name__ == "__main__":
    status = main(sys.argv[1:])
    os._exit(status)  # skips the teardown of the Arrow library
