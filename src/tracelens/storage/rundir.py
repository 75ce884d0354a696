"""Making a run's directory, or joining the one that another rank has made."""

from __future__ import annotations

import time
from pathlib import Path

from tracelens.errors import SessionError
from tracelens.processes import launch
from tracelens.storage.manifest import (
    LIVE_DIR,
    MANIFEST,
    SHARDS_DIR,
    Manifest,
    new_manifest,
    read_manifest,
    write_manifest,
)

CREATED_BY = "tracelens"


def open_run(run_dir: Path, rank: int, attempt: int, world_size: int) -> tuple[Manifest, str]:
    """Create the run's directory and manifest, or join it; return the manifest and shard name.

    Args:
        run_dir: the trace.
        rank: this process's rank; each rank may join a run once an attempt.
        attempt: how often the rank was restarted.
        world_size: how many ranks the run has.

    Raises:
        SessionError: the path holds something else, or this rank has recorded there already.
        OSError: the directory cannot be made or written.
    """
    shard = f"r{rank:05d}-{attempt}"
    if run_dir.exists() and not run_dir.is_dir():
        raise SessionError(f"{run_dir} is a file; choose another path for the trace")
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / MANIFEST).exists():
        if _is_foreign(run_dir):
            raise SessionError(f"{run_dir} is not empty and no trace; choose another path")
        write_manifest(run_dir, new_manifest(time.time_ns(), world_size, CREATED_BY, launch()))
    manifest = read_manifest(run_dir)
    if attempt == 0 and launch() and manifest.launch not in ("", launch()):
        raise SessionError(
            f"{run_dir} holds another run, which these ranks do not belong to; choose another path "
            "or remove it"
        )
    for name in (SHARDS_DIR, LIVE_DIR):
        (run_dir / name).mkdir(exist_ok=True)
    if (run_dir / SHARDS_DIR / f"{shard}.json").exists() or _live(run_dir, shard).exists():
        raise SessionError(
            f"{run_dir} already holds a trace of rank {rank}; choose another path or remove it"
        )
    return manifest, shard


def _live(run_dir: Path, shard: str) -> Path:
    return run_dir / LIVE_DIR / f"{shard}.ring"


def _is_foreign(run_dir: Path) -> bool:
    """Tell whether a directory without a manifest holds anything but a rank's first files."""
    return any(not path.name.startswith(".tmp-") for path in run_dir.iterdir())


def monotonic_epoch_ns(epoch_unix_ns: int) -> int:
    """Return the ``CLOCK_MONOTONIC`` value at a Unix time, from the narrowest of some readings."""
    best, offset = None, 0
    for _ in range(5):
        before = time.monotonic_ns()
        unix = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best:
            best, offset = after - before, unix - (before + after) // 2
    return epoch_unix_ns - offset
