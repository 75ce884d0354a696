"""Moves committed ring records and events of one shard into Parquet segments."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tracelens.storage.encode import Encoder, complete_length
from tracelens.storage.eventlog import EventRows
from tracelens.storage.format import RECORD, RECORD_BYTES
from tracelens.storage.jsonlines import read_lines
from tracelens.storage.manifest import (
    LIVE_DIR,
    SHARDS_DIR,
    Segment,
    ShardState,
    read_manifest,
    read_shard,
    write_shard,
)
from tracelens.storage.ring import Records, RingReader
from tracelens.storage.segments import SegmentStore
from tracelens.storage.spooled import seal_spools
from tracelens.storage.strings import StringReader
from tracelens.storage.summary import write_run_tables

SEAL_FRACTION = 0.375
"""Seal once this part of the ring is committed: the rest takes what comes meanwhile."""

SEAL_INTERVAL_S = 30.0
"""Seal at least this often, so that a lost machine loses no more."""

HOLE_GRACE_S = 1.0
"""A reserved position still empty after this belongs to a thread that died."""

DROP_GRACE_S = 0.05
"""The same for a position for which the ring had no room, which a writer drops at once."""

SPOOL_INTERVAL_S = 0.5
"""Look this often for what a profiler handed over."""

_BATCH_RECORDS = 128 * 1024
_WINDOW = 1024
_MAX_LOST = 1 << 40


class Sealer:
    """Seals one shard. Not thread-safe: one caller at a time.

    Attributes:
        set_aside: damaged spools that were renamed, relative to the trace.
    """

    def __init__(
        self, run_dir: Path, shard: str, clock_ns: Callable[[], int] | None = None
    ) -> None:
        """Open what the shard's writer has made.

        Args:
            run_dir: the trace.
            shard: the shard's name.
            clock_ns: time since the run's epoch, for the heartbeat.

        Raises:
            TraceError: the shard's JSON or ring is missing or damaged.
            BlockingIOError: another process seals this shard.
        """
        self.run_dir = run_dir
        self.state = read_shard(run_dir / SHARDS_DIR / f"{shard}.json")
        live = run_dir / LIVE_DIR
        self._events_path = live / f"{shard}.events"
        self._kept_path = live / f"{shard}.kept"
        self._strings = StringReader(live / f"{shard}.strings")
        self.ring = RingReader(ring_path(run_dir, self.state), writable=True)
        self._lock_fd = _lock(self.ring.path)
        self._encoder = Encoder(self.state.rank, self._strings.refresh)
        self._events = EventRows(self.state.rank, self.state.n_events)
        self._store = SegmentStore(run_dir, shard)
        self._store.adopt(self.state.segments)
        self._n_sources = sum(s.rows for s in self.state.segments if s.table == "sources")
        self._clock_ns = clock_ns or _clock(run_dir)
        self._scan = max(self.state.sealed, self.ring.sealed)
        self._hole_since: tuple[int, float] | None = None
        self._full_at = self.state.sealed + self.ring.capacity
        self._last_seal = time.monotonic()
        self._last_spool = 0.0
        self.set_aside: list[str] = []

    def poll(self, *, now: bool = False) -> bool:
        """Seal if there is enough to seal or it is time; return whether it sealed.

        Args:
            now: seal whatever is committed.

        Raises:
            OSError: the disk is full; nothing is lost, a later call tries again.
        """
        if now or time.monotonic() - self._last_spool >= SPOOL_INTERVAL_S:
            self.seal_spools()
        self._advance()
        ready = self._scan - self.state.sealed
        late = now or time.monotonic() - self._last_seal >= SEAL_INTERVAL_S
        if ready < self.ring.capacity * SEAL_FRACTION and not late:
            return False
        try:
            self._seal_records(self._scan, final=False)
            if late:
                self._seal_events()
                self._save()
        except OSError:
            self.state.state = "disk_full"
            with contextlib.suppress(OSError):
                self._save()
            raise
        self.state.state = "live"
        return True

    def finish(self, state: str) -> None:
        """Seal everything, write the final shard JSON and remove the shard's live files.

        Args:
            state: ``closed`` or ``killed``.

        Raises:
            OSError: the disk is full; the live files stay.
        """
        if self.state.mode == "stream":
            head = self.ring.find_head()
            given_out = self.ring.head_hint
            if head < given_out < head + _MAX_LOST:
                head = given_out  # what was reserved and never written counts as dropped
            self._seal_records(head, final=True)
        else:
            kept = self.kept() if state == "closed" else self.kept_and_ring()
            self.state.segments.extend(self._write(kept))
            self.state.records += len(kept)
        self.seal_spools()
        self._seal_events()
        self._write_sources()
        self.state = replace(self.state, state=state, ring="")
        self._save()
        self.close()
        write_run_tables(self.run_dir)
        for suffix in ("ring", "strings", "events", "kept"):
            (self.run_dir / LIVE_DIR / f"{self.state.shard}.{suffix}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other shards may still be live
            (self.run_dir / LIVE_DIR).rmdir()

    def seal_spools(self) -> None:
        """Turn the tables that a profiler handed over into segments.

        A damaged spool is renamed to ``*.damaged``, and a note says so.

        Raises:
            OSError: the disk is full; the spools stay.
        """
        self._last_spool = time.monotonic()
        notes, damaged = seal_spools(self.run_dir, self.state, self._store, self._save)
        self._events.add_all(notes)
        self.set_aside += damaged

    def close(self) -> None:
        """Let go of the ring; what is not sealed stays where it is. Idempotent."""
        self.ring.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def kept(self) -> Records:
        """Return the records that flight mode was told to keep, each once."""
        return _unique(read_kept(self._kept_path))

    def kept_and_ring(self) -> Records:
        """Return the kept records and what the flight recorder still holds, each once."""
        head = self.ring.find_head()
        ring = self.ring.committed(head - self.ring.capacity, head)
        return _unique(np.concatenate([self.kept(), ring]))

    def _advance(self) -> None:
        """Move ``_scan`` over committed records, and over holes that will not be filled."""
        self._scan = self.ring.scan(self._scan)
        following = self.ring.next_committed(self._scan, _WINDOW)
        hint = self.ring.head_hint
        if following is None and hint > self._scan:
            following = self.ring.next_committed(self._scan, self.ring.capacity) or hint
        if following is None:
            self._hole_since = None
        elif self._hole_since is None or self._hole_since[0] != self._scan:
            self._hole_since = (self._scan, time.monotonic())
        elif time.monotonic() - self._hole_since[1] > self._grace_s():
            self._scan = self.ring.scan(following)
            self._hole_since = None

    def _grace_s(self) -> float:
        """How long to wait for the record at ``_scan``."""
        dropping = self.ring.meta.get("on_full") == "drop"
        return DROP_GRACE_S if dropping and self._scan >= self._full_at else HOLE_GRACE_S

    def _seal_records(self, stop: int, *, final: bool) -> None:
        while self.state.sealed < stop:
            start = self.state.sealed
            room = self.ring.capacity
            end = min(stop, start + min(room, _BATCH_RECORDS))
            records = self.ring.committed(start, end)
            if not len(records) and self.ring.next_committed(start, room) is None:
                end = max(end, stop - room)  # a long run of dropped positions
            if not (final and end == stop):
                whole = complete_length(records)
                if whole < len(records):
                    end = int(records["seq"][whole]) - 1
                    records = records[:whole]
            if end <= start:
                return
            segments = self._write(records)
            self.state.segments.extend(segments)
            self.state.records += len(records)
            self.state.dropped += end - start - len(records)
            self.state.sealed = end
            self._save()
            self._full_at = start + self.ring.capacity
            self.ring.set_sealed(end)
            # Writers that found the ring full have only now been given room.
            self._hole_since = None
            self._last_seal = time.monotonic()

    def _write(self, records: Records) -> list[Segment]:
        segments = []
        for name, table in self._encoder.tables(records).items() if len(records) else ():
            ids = table["op_id"]
            segments.append(self._store.write(name, table, ids[0].as_py(), ids[-1].as_py()))
        return segments

    def _read_events(self) -> int:
        offset = self.state.events_sealed_bytes
        for line, end in read_lines(self._events_path, offset):
            self._events.add(line)
            offset = end
        return offset

    def _seal_events(self) -> None:
        first = self._events.next_id
        offset = self._read_events()
        segments = [
            self._store.write(name, table, first, self._events.next_id - 1)
            for name, table in self._events.tables().items()
        ]
        self.state.segments.extend(segments)
        self.state.events_sealed_bytes = offset
        self.state.n_events = self._events.next_id

    def _write_sources(self) -> None:
        sources = self._encoder.sources(self._n_sources)
        if sources.num_rows:
            low, high = self._n_sources + 1, self._n_sources + sources.num_rows
            self.state.segments.append(self._store.write("sources", sources, low, high))
            self._n_sources = high

    def _save(self) -> None:
        self.state.heartbeat_ns = self._clock_ns()
        self.state.framework = self.ring.framework or self.state.framework
        write_shard(self.run_dir, self.state)


def ring_path(run_dir: Path, state: ShardState) -> Path:
    """Return where a shard's ring lies: in the trace, or on the node's own disk."""
    return run_dir / (state.ring or f"{LIVE_DIR}/{state.shard}.ring")


def _lock(path: Path) -> int:
    """Lock a ring against a second sealer; the kernel unlocks it when this process ends.

    Raises:
        BlockingIOError: another process seals this shard.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_kept(path: Path) -> Records:
    """Read raw records that flight mode kept; a torn last one is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return np.empty(0, dtype=RECORD)
    return np.frombuffer(data, dtype=RECORD, count=len(data) // RECORD_BYTES)


def _unique(records: Records) -> Records:
    """Return the records in position order, each position once."""
    return records[np.unique(records["seq"], return_index=True)[1]]


def _clock(run_dir: Path) -> Callable[[], int]:
    epoch = read_manifest(run_dir).epoch_unix_ns
    return lambda: time.time_ns() - epoch
