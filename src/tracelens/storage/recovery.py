"""After a kill: what can still be read, and sealing it for good."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracelens.errors import TraceError
from tracelens.storage.catalog import is_alive
from tracelens.storage.checksum import file_crc32
from tracelens.storage.encode import Encoder
from tracelens.storage.eventlog import EventRows
from tracelens.storage.jsonlines import read_lines
from tracelens.storage.manifest import (
    LIVE_DIR,
    MANIFEST,
    SHARD_NAME,
    SHARDS_DIR,
    Manifest,
    Segment,
    ShardState,
    new_manifest,
    read_manifest,
    read_shard,
    shard_files,
    write_manifest,
    write_shard,
)
from tracelens.storage.ring import RING_STATE, RingReader
from tracelens.storage.sealer import Sealer, read_kept, ring_path
from tracelens.storage.segments import SegmentStore, read_zone, remove_leftovers
from tracelens.storage.spooled import seal_spools
from tracelens.storage.strings import StringReader
from tracelens.storage.summary import write_run_tables
from tracelens.storage.tables import SHARD_TABLES

if TYPE_CHECKING:
    import pyarrow as pa

DAMAGED_SUFFIX = ".damaged"
_SEALER_WAIT_S = 10.0


@dataclass(slots=True)
class Tail:
    """What a shard holds beyond its segments.

    Attributes:
        tables: rows by table; a table without rows is absent.
        records: ring records found.
        holes: reserved positions that were never written.
        damaged_lines: lines of the strings and events files that are no JSON.
    """

    tables: dict[str, pa.Table] = field(default_factory=dict)
    records: int = 0
    holes: int = 0
    damaged_lines: int = 0


@dataclass(slots=True)
class Repair:
    """What ``repair`` did.

    Attributes:
        sealed: shards whose rings were sealed.
        records: records that were only in rings before.
        holes: reserved positions that killed threads never wrote.
        live: shards left alone because their program still runs.
        rebuilt: manifest or shard files made anew.
        removed: unfinished files removed; their records are in the ring or were sealed.
        set_aside: damaged files renamed.
    """

    sealed: list[str] = field(default_factory=list)
    records: int = 0
    holes: int = 0
    live: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line a kind of thing done."""
        lines = []
        if self.sealed:
            holes = f", {self.holes} holes of killed threads" if self.holes else ""
            lines.append(f"sealed {', '.join(self.sealed)}: {self.records} records{holes}")
        for what, names in (
            ("left alone, still running", self.live),
            ("rebuilt", self.rebuilt),
            ("removed unfinished", self.removed),
            ("set aside damaged", self.set_aside),
        ):
            if names:
                shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" * (len(names) > 5))
                lines.append(f"{what}: {shown}")
        return "\n".join(lines) or "nothing to repair"


def recover_tail(run_dir: str | os.PathLike[str], shard: str) -> Tail:
    """Return everything of a live or dead shard that no segment holds yet; write nothing.

    Raises:
        TraceError: the shard's JSON or its ring is missing or damaged.
    """
    run = Path(run_dir)
    path = run / SHARDS_DIR / f"{shard}.json"
    while True:
        state = read_shard(path)
        tail = _tail(run, state)
        if read_shard(path).sealed == state.sealed:  # else a sealer moved what was just read
            return tail


def _tail(run: Path, state: ShardState) -> Tail:
    tail = Tail()
    live = run / LIVE_DIR
    ring = RingReader(ring_path(run, state))
    try:
        head = ring.find_head()
        start = max(head - ring.capacity, state.sealed if state.mode == "stream" else 0, 0)
        records = ring.committed(start, head)
    finally:
        ring.close()
    if state.mode == "flight":
        records = np.concatenate([read_kept(live / f"{state.shard}.kept"), records])
        records = records[np.unique(records["seq"], return_index=True)[1]]
    strings = StringReader(live / f"{state.shard}.strings")
    encoder = Encoder(state.rank, strings.refresh)
    tail.tables = encoder.tables(records)
    tail.records = len(records)
    if state.mode == "stream":
        tail.holes = head - start - len(records)
    events = EventRows(state.rank, state.n_events)
    lines = read_lines(live / f"{state.shard}.events", state.events_sealed_bytes)
    events.add_all(line for line, _ in lines)
    tail.tables.update(events.tables())
    sources = encoder.sources(sum(s.rows for s in state.segments if s.table == "sources"))
    if sources.num_rows:
        tail.tables["sources"] = sources
    tail.damaged_lines = strings.damaged_lines + events.lost
    return tail


def repair(run_dir: str | os.PathLike[str]) -> Repair:
    """Seal what dead writers left in their rings, and make the trace's files consistent.

    Shards whose program still runs are left alone. Nothing recorded is deleted: a damaged file
    is renamed to ``*.damaged``.

    Raises:
        TraceError: there is no trace, it is of a newer format, or it cannot be written.
    """
    run = Path(run_dir)
    done = Repair()
    if not run.is_dir():
        raise TraceError(f"{run}: no such trace directory")
    try:
        manifest = _manifest(run, done)
        for shard in _shards(run):
            _repair_shard(run, shard, manifest, done)
        if not done.live:
            done.removed += remove_leftovers(run)
        if done.sealed or done.rebuilt or done.removed or done.set_aside:
            write_run_tables(run)
    except OSError as error:
        raise TraceError(f"{run}: cannot be repaired: {error.strerror or error}") from error
    return done


def _manifest(run: Path, done: Repair) -> Manifest:
    """Read the run's manifest, or make it anew from what a ring's header says."""
    try:
        return read_manifest(run)
    except TraceError as error:
        if "newer" in str(error) or not _shards(run):
            raise
    manifest = new_manifest(0, 1, "tracelens repair")
    for path in sorted((run / LIVE_DIR).glob("*.ring")):
        with contextlib.suppress(TraceError):
            meta = RingReader(path).meta
            if isinstance(meta.get("epoch_unix_ns"), int) and isinstance(meta.get("run_id"), str):
                manifest = replace(
                    manifest, epoch_unix_ns=meta["epoch_unix_ns"], run_id=meta["run_id"]
                )
    if (run / MANIFEST).exists():
        _set_aside(run, run / MANIFEST, done)
    write_manifest(run, manifest)
    done.rebuilt.append(MANIFEST)
    return manifest


def _shards(run: Path) -> list[str]:
    """Return the names of shards that have a JSON file, a ring, or segments."""
    names = {path.stem for path in shard_files(run)}
    names.update(path.stem for path in (run / LIVE_DIR).glob("*.ring"))
    names.update(path.name[len("shard=") :] for path in run.glob("*/shard=*"))
    return sorted(name for name in names if SHARD_NAME.fullmatch(name))


def _repair_shard(run: Path, shard: str, manifest: Manifest, done: Repair) -> None:
    path = run / SHARDS_DIR / f"{shard}.json"
    ring = run / LIVE_DIR / f"{shard}.ring"
    with contextlib.suppress(TraceError):
        known = read_shard(path)
        if not is_alive(known, manifest):
            _wait_for_sealer(ring_path(run, known))
    try:
        state = read_shard(path)
    except TraceError:
        state = _rebuild_state(run, shard, ring, done)
    if state.state not in ("closed", "killed") and is_alive(state, manifest):
        done.live.append(shard)
        return
    ring = ring_path(run, state)
    unsealed = ring.exists() and (state.state != "closed" and state.state != "killed")
    changed = _check_segments(run, state, done, redundant=unsealed)
    if not unsealed:
        if state.state == "live":
            state.state, changed = "killed", True
        if changed:
            write_shard(run, state)
        return
    write_shard(run, state)
    try:
        sealer = _sealer(run, shard, done)
    except TraceError:
        if not ring.exists():
            return
        _set_aside(run, ring, done)
        state.state = "killed"
        store = SegmentStore(run, shard)
        store.adopt(state.segments)
        done.set_aside += seal_spools(run, state, store, lambda: write_shard(run, state))[1]
        write_shard(run, state)
        return
    before = sealer.state.records, sealer.state.dropped
    sealer.finish("killed")
    done.sealed.append(shard)
    done.set_aside += sealer.set_aside
    done.records += sealer.state.records - before[0]
    done.holes += sealer.state.dropped - before[1]


def _wait_for_sealer(ring: Path) -> None:
    """Wait until nobody seals a ring: a dead program's helper process may still be at it.

    Its segments are not listed until it is done, so they must not be taken for leftovers.
    """
    deadline = time.monotonic() + _SEALER_WAIT_S
    while time.monotonic() < deadline:
        try:
            fd = os.open(ring, os.O_RDWR)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.05)
        finally:
            os.close(fd)


def _sealer(run: Path, shard: str, done: Repair) -> Sealer:
    """Open the shard's sealer, waiting for one that is still at work."""
    deadline = time.monotonic() + _SEALER_WAIT_S
    while True:
        try:
            return Sealer(run, shard)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _rebuild_state(run: Path, shard: str, ring: Path, done: Repair) -> ShardState:
    """Make a shard's state anew from its ring's header and the segments on disk."""
    path = run / SHARDS_DIR / f"{shard}.json"
    if path.exists():
        _set_aside(run, path, done)
    path.parent.mkdir(exist_ok=True)
    numbers = shard[1:].split("-")
    state = ShardState(shard, int(numbers[0]), int(numbers[1]), "", 0, "", "stream")
    with contextlib.suppress(TraceError, TypeError):
        reader = RingReader(ring)
        meta = {name: reader.meta[name] for name in RING_STATE if name in reader.meta}
        rebuilt = replace(state, **{**meta, "shard": shard, "sealed": reader.sealed})
        if all(type(getattr(rebuilt, n)) is type(getattr(state, n)) for n in RING_STATE):
            state = rebuilt
        reader.close()
    state.segments = list(_segments_on_disk(run, shard, done))
    state.records = sum(s.rows for s in state.segments if s.table in ("ops", "stats"))
    done.rebuilt.append(f"{SHARDS_DIR}/{path.name}")
    return state


def _check_segments(run: Path, state: ShardState, done: Repair, *, redundant: bool) -> bool:
    """Set damaged segments aside and settle files that the shard's JSON does not list.

    Args:
        run: the trace.
        state: the shard; its list of segments is corrected.
        done: what was done is added.
        redundant: the ring still holds the records of unlisted segments, which are then
            removed; otherwise they are listed.
    """
    good = []
    for segment in state.segments:
        path = run / segment.file
        if not path.exists():
            continue
        if segment.crc32 is not None and file_crc32(path) != segment.crc32:
            _set_aside(run, path, done)
        else:
            good.append(segment)
    changed = len(good) != len(state.segments)
    listed = {segment.file for segment in good}
    for segment in _segments_on_disk(run, state.shard, done):
        if segment.file in listed:
            continue
        changed = True
        if redundant:
            (run / segment.file).unlink()
            done.removed.append(segment.file)
        else:
            good.append(segment)
    state.segments = good
    return changed


def _segments_on_disk(run: Path, shard: str, done: Repair) -> Iterator[Segment]:
    """Describe every Parquet file of a shard from its own footer."""
    for table in SHARD_TABLES:
        for path in sorted((run / table / f"shard={shard}").glob("[!.]*.parquet")):
            try:
                rows, zone = read_zone(path)
            except (OSError, ValueError):
                _set_aside(run, path, done)
                continue
            file = f"{table}/shard={shard}/{path.name}"
            yield Segment(table, file, rows, path.stat().st_size, crc32=file_crc32(path), **zone)


def _set_aside(run: Path, path: Path, done: Repair) -> None:
    path.rename(path.with_name(path.name + DAMAGED_SUFFIX))
    done.set_aside.append(os.path.relpath(path, run))
