"""What a trace directory holds at one moment: its shards, their files, and what is wrong.

Everything here is read from files that anyone may have written: paths are checked to be plain
files inside the trace, numbers to be numbers, and nothing is believed to exist.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tracelens.errors import TraceError
from tracelens.storage.health import Problem
from tracelens.storage.manifest import (
    LIVE_DIR,
    MANIFEST,
    SHARDS_DIR,
    Manifest,
    Segment,
    ShardState,
    read_manifest,
    read_shard,
    shard_files,
)
from tracelens.storage.segment_files import SegmentFile
from tracelens.storage.spool import spools

_PARQUET_MAGIC = b"PAR1"
_ZONES = ("op_lo", "op_hi", "step_lo", "step_hi")
# A writer on another machine cannot be asked whether it lives; it writes its state at least
# every 30 s, so four missed writes mean that it is gone.
_OPEN = ("live", "disk_full")
_STALE_NS = 120 * 1_000_000_000


@dataclass(slots=True)
class ShardFiles:
    """One shard: its state and the files of it that can be read.

    Attributes:
        state: the shard's own manifest.
        alive: its writer still runs, as far as can be told from here.
        segments: Parquet files that exist, by table.
        ring: the ring's path, ``None`` if it is gone (a closed shard) or not to be trusted.
        kept: records that flight mode was told to keep, ``None`` likewise.
        strings: the interned values' path, ``None`` likewise.
        events: the live events' path, ``None`` likewise.
    """

    state: ShardState
    alive: bool
    segments: dict[str, list[SegmentFile]] = field(default_factory=dict)
    ring: Path | None = None
    kept: Path | None = None
    strings: Path | None = None
    events: Path | None = None

    @property
    def name(self) -> str:
        """The shard's name (``r00000-0``)."""
        return self.state.shard


@dataclass(slots=True)
class Catalog:
    """All shards of a run, by rank and attempt, and the problems met while listing them."""

    run_dir: Path
    manifest: Manifest
    shards: list[ShardFiles] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def open_catalog(path: str | os.PathLike[str]) -> Catalog:
    """List what a trace directory holds.

    Raises:
        TraceError: there is no trace, or its manifest cannot be read or is of a newer format.
    """
    run_dir = Path(path)
    if not run_dir.exists():
        raise TraceError(f"{run_dir}: no such trace: check the path (a trace is a directory)")
    if not run_dir.is_dir():
        raise TraceError(f"{run_dir}: is a file, not a trace: give the .tltrace directory")
    run_dir = run_dir.resolve()
    if not _lexists(run_dir / MANIFEST):
        raise TraceError(f"{run_dir}: not a trace: it has no {MANIFEST}")
    if inside(run_dir, MANIFEST) is None:
        raise TraceError(f"{run_dir / MANIFEST}: not a plain file inside the trace: refused")
    catalog = Catalog(run_dir, read_manifest(run_dir))
    _list_shards(catalog)
    catalog.problems.extend(_leftovers(run_dir))
    return catalog


def inside(run_dir: Path, relative: str) -> Path | None:
    """Return the path of a plain file inside the trace, ``None`` if it is anything else.

    Symbolic links are followed only as far as they stay inside; pipes and devices are refused,
    because opening them can block or never end.
    """
    path = run_dir / relative
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_relative_to(run_dir) or not stat.S_ISREG(resolved.stat().st_mode):
            return None
    except (OSError, ValueError, RuntimeError):
        return None
    return resolved


def _lexists(path: Path) -> bool:
    return os.path.lexists(path)


def _list_shards(catalog: Catalog) -> None:
    run_dir = catalog.run_dir
    seen_ranks = set()
    for path in shard_files(run_dir):
        if inside(run_dir, f"{SHARDS_DIR}/{path.name}") is None:
            catalog.problems.append(
                Problem("torn_shard", path.stem, f"{path.name} is not a plain file of the trace")
            )
            continue
        try:
            state = read_shard(path)
        except TraceError as error:
            catalog.problems.append(Problem("torn_shard", path.stem, str(error)))
            continue
        odd = [name for name, value in asdict(state).items() if not _is_plausible(value)]
        if odd or state.rank < 0:
            message = f"{path.name} is damaged: {', '.join(odd) or 'rank'} cannot be"
            catalog.problems.append(Problem("torn_shard", path.stem, message))
            continue
        seen_ranks.add(state.rank)
        catalog.shards.append(_shard(catalog, state))
    catalog.shards.sort(key=lambda shard: (shard.state.rank, shard.state.attempt, shard.name))
    _add_orphans(catalog)
    seen_ranks.update(shard.state.rank for shard in catalog.shards)
    # The world size is a number from a file: never count further than there can be ranks.
    world_size = min(_count(catalog.manifest.world_size), 1 << 20)
    missing = [rank for rank in range(world_size) if rank not in seen_ranks]
    if missing:
        shown = ", ".join(str(rank) for rank in missing[:8]) + (" ..." if missing[8:] else "")
        catalog.problems.append(
            Problem(
                "missing_shard",
                "",
                f"{len(missing)} of {world_size} ranks left no shard: {shown}",
                len(missing),
            )
        )


def _shard(catalog: Catalog, state: ShardState) -> ShardFiles:
    run_dir = catalog.run_dir
    shard = ShardFiles(state, alive=state.state in _OPEN and is_alive(state, catalog.manifest))
    if state.state == "live" and not shard.alive:
        catalog.problems.append(
            Problem(
                "dead_writer",
                state.shard,
                f"its process {state.pid} ended without closing the trace; what it had recorded "
                "is read from the ring (`tracelens repair` seals it)",
            )
        )
    if state.state in ("disk_full", "failed"):
        catalog.problems.append(
            Problem(state.state, state.shard, f"its writer ended {state.state}")
        )
    if state.dropped:
        catalog.problems.append(
            Problem("dropped", state.shard, f"{state.dropped} records were lost", state.dropped)
        )
    if state.state in (*_OPEN, "failed"):
        shard.ring = _ring_path(run_dir, state)
        shard.kept = inside(run_dir, f"{LIVE_DIR}/{state.shard}.kept")
        if shard.ring is None:
            message = "its ring is missing, or not a plain file of the trace"
            catalog.problems.append(Problem("unreadable_ring", state.shard, message))
    catalog.problems.extend(_spools(run_dir, shard))
    shard.strings = inside(run_dir, f"{LIVE_DIR}/{state.shard}.strings")
    shard.events = inside(run_dir, f"{LIVE_DIR}/{state.shard}.events")
    for segment in state.segments:
        file, reason = _segment_file(run_dir, state.shard, segment)
        if file is None:
            catalog.problems.append(
                Problem("quarantined", state.shard, f"{segment.file}: {reason}")
            )
        else:
            shard.segments.setdefault(segment.table, []).append(file)
    return shard


def _spools(run_dir: Path, shard: ShardFiles) -> Iterator[Problem]:
    """Tell of tables of a profiler that no segment holds."""
    waiting = 0 if shard.alive else len(spools(run_dir, shard.state.shard))
    if waiting:
        message = f"{waiting} profiles are not read before `tracelens repair` seals them"
        yield Problem("unsealed", shard.state.shard, message, waiting)
    for path in sorted((run_dir / LIVE_DIR).glob(f"{shard.state.shard}.spool-*.damaged")):
        message = f"{LIVE_DIR}/{path.name[:80]}: a damaged profile was set aside"
        yield Problem("quarantined", shard.state.shard, message)


def _add_orphans(catalog: Catalog) -> None:
    """Tell of rings whose shard file is missing or torn."""
    known = {shard.name for shard in catalog.shards}
    told = {problem.shard for problem in catalog.problems if problem.kind == "torn_shard"}
    for path in sorted((catalog.run_dir / LIVE_DIR).glob("*.ring")):
        if path.stem not in known | told:
            catalog.problems.append(
                Problem("torn_shard", path.stem[:80], "a ring without its shard file: run repair")
            )


def _ring_path(run_dir: Path, state: ShardState) -> Path | None:
    """The ring lies in the trace, or on the node's own disk where the trace is on a network."""
    if not Path(state.ring).is_absolute():
        return inside(run_dir, state.ring or f"{LIVE_DIR}/{state.shard}.ring")
    path = Path(state.ring)
    if path.suffix != ".ring" or state.shard not in path.name:
        return None
    return inside(path.parent.resolve(), path.name)


def _segment_file(run_dir: Path, shard: str, segment: Segment) -> tuple[SegmentFile | None, str]:
    """Check what costs little: place, kind, size and magic bytes. Returns a file or a reason."""
    if segment.file.split("/")[1] != f"shard={shard}":
        return None, "lies in another shard's directory"
    if not _is_count(segment.rows) or not _is_count(segment.size_bytes):
        return None, "its manifest entry is damaged"
    path = inside(run_dir, segment.file)
    if path is None:
        return None, "missing, or not a plain file inside the trace"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(4)
            file.seek(max(0, size - 4))
            tail = file.read(4)
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    if size != segment.size_bytes:
        return None, f"has {size} bytes, not {segment.size_bytes}: truncated or overwritten"
    if head != _PARQUET_MAGIC or tail != _PARQUET_MAGIC:
        return None, "is not a Parquet file"
    zones = {name: getattr(segment, name) for name in _ZONES}
    if not all(value is None or _is_int(value) for value in zones.values()):
        zones = dict.fromkeys(_ZONES)
    crc32 = segment.crc32 if _is_int(segment.crc32) else None
    file_entry = SegmentFile(
        segment.table, shard, path, segment.rows, segment.size_bytes, crc32=crc32, **zones
    )
    return file_entry, ""


def _leftovers(run_dir: Path) -> Iterator[Problem]:
    """Files that a killed writer left half written; every reader ignores them."""
    names = []
    for directory in (run_dir, run_dir / SHARDS_DIR, *run_dir.glob("*/shard=*")):
        if not directory.is_symlink():
            names += [path.name for path in directory.glob(".tmp-*")]
    if names:
        yield Problem(
            "leftover_tmp",
            "",
            f"{len(names)} unfinished files ignored ({names[0]} ...)",
            len(names),
        )


def is_alive(state: ShardState, manifest: Manifest) -> bool:
    """Tell whether a shard's writer still runs, as far as can be told from here."""
    if state.host != socket.gethostname():
        heartbeat_ns = manifest.epoch_unix_ns + state.heartbeat_ns
        return time.time_ns() - heartbeat_ns < _STALE_NS
    if not 0 < state.pid < 1 << 31:
        return False
    try:
        os.kill(state.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not _is_zombie(state.pid)


def _is_zombie(pid: int) -> bool:
    """A killed process that its parent has not waited for still has an id, but writes nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_plausible(value: object) -> bool:
    """Whether a value of a shard's manifest is one that a table column can hold."""
    return (
        _is_int(value)
        if type(value) is int
        else "\n" not in value
        if isinstance(value, str)
        else True
    )


def _is_count(value: object) -> bool:
    return _is_int(value) and isinstance(value, int) and value >= 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
