"""The process beside the training process: ``python -m tracelens.storage.sealing RUN SHARD``.

It ends when its standard input does: the training process has then closed the shard or is
dead, and everything that was committed gets sealed. Until there is something to seal it is an
idle interpreter that has imported neither NumPy nor Arrow.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.storage.sealer import Sealer

POLL_S = 0.02
SPOOL_POLL_S = 1.0
"""Look this often for a spool where there is nothing else to seal."""

RETRY_S = 2.0
"""Wait this long after a full disk."""


def main(arguments: list[str]) -> int:
    """Seal one shard until its writer is done. Status 1: its live files stay for ``repair``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    run_dir, shard, mode = Path(arguments[0]), arguments[1], arguments[2]
    if mode == "flight":
        _wait_for_work(run_dir, shard)
    from tracelens.storage.sealer import Sealer

    try:
        sealer = Sealer(run_dir, shard)
        _seal_until_done(sealer, mode)
        last = _last_words()
        sealer.state.dropped += int(last.get("dropped", 0))
        sealer.finish(str(last.get("state", "killed")))
    except Exception:
        return 1
    _align(run_dir)
    return 0


def _align(run_dir: Path) -> None:
    """Bring the clocks of a run's ranks together, if this was the last of them to be sealed."""
    from tracelens.storage.manifest import read_manifest

    # The shard is whole already: what fails here is for `tracelens ranks` to work out again.
    with contextlib.suppress(Exception):
        if read_manifest(run_dir).world_size > 1:
            # By its name, because storage stands below the analysis.
            import_module("tracelens.analysis.ranks.stored").align_run(run_dir)


def _wait_for_work(run_dir: Path, shard: str) -> None:
    """Flight mode: wait until the parent is done, or a profiler has handed something over."""
    first = f"{shard}.spool-"
    while not _parent_is_done(SPOOL_POLL_S):
        with contextlib.suppress(OSError):
            if any(path.name.startswith(first) for path in (run_dir / "_live").iterdir()):
                return


def _seal_until_done(sealer: Sealer, mode: str) -> None:
    seal, usual = (sealer.poll, POLL_S) if mode == "stream" else (sealer.seal_spools, SPOOL_POLL_S)
    pause = usual
    while not _parent_is_done(pause):
        try:
            seal()
            pause = usual
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
