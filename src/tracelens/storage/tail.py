"""Following a trace while it is written: ops from the rings, events from their JSON lines."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tracelens.errors import TraceError
from tracelens.events import Op, OpFlag, RecordKind
from tracelens.storage.catalog import ShardFiles, open_catalog
from tracelens.storage.decode import RECORD_INPUTS, Decoder
from tracelens.storage.eventcheck import clean_event
from tracelens.storage.format import RECORD
from tracelens.storage.live import LineFollower, open_ring
from tracelens.storage.ring import Records, RingReader
from tracelens.storage.strings import StringReader

_LIST_INTERVAL_S = 0.5
_BLOCK_RECORDS = 16 * 1024
# A hole is a record that a thread has reserved and not written yet; one killed there never will.
_HOLE_PATIENCE_S = 0.1
# Stores may become visible out of order except on x86; a record this old has settled.
_SETTLE_S = 0.0 if platform.machine().lower() in ("x86_64", "amd64", "i686") else 0.005


@dataclass(slots=True)
class News:
    """What happened since the last poll.

    Attributes:
        ops: new ops, the newest of each shard, in the order of their ids.
        events: new events, oldest first in each shard; each has its ``rank``.
        skipped: records left out because a poll had more than ``max_ops`` to deliver; a stream-mode
            trace keeps them in its segments.
        missed: records that were overwritten before they could be read; a stream-mode trace
            has them in its segments.
        ended: shards whose writer closed them or died, all their news delivered.
    """

    ops: list[Op] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    missed: int = 0
    ended: list[str] = field(default_factory=list)


class Tail:
    """Follows every shard of a trace from now on (or from the start).

    Use it from one thread, and call ``poll`` as often as news should show: it costs a few
    microseconds a shard when there is none.
    """

    def __init__(self, path: str | os.PathLike[str], *, from_start: bool = True) -> None:
        """Begin to follow.

        Args:
            path: the trace.
            from_start: also deliver what is already there and still in rings and event files.

        Raises:
            TraceError: there is no trace.
        """
        self._path = Path(path)
        self._from_start = from_start
        self._shards: dict[str, _ShardTail] = {}
        self._done: set[str] = set()
        self._listed_at = 0.0
        self._list()

    def poll(self, max_ops: int = 400) -> News:
        """Return what is new. Never blocks, and never raises for damage.

        Args:
            max_ops: records to decode at most a shard; when more have come, only the newest are
                delivered, so that a slow follower stays close to the writer.
        """
        if time.monotonic() - self._listed_at >= _LIST_INTERVAL_S:
            self._list()
        if _SETTLE_S:
            time.sleep(_SETTLE_S)
        news = News()
        for name, shard in list(self._shards.items()):
            shard.poll(news, max_ops)
            if shard.ended:
                shard.close()
                del self._shards[name]
                self._done.add(name)
                news.ended.append(name)
        return news

    def follow(self, interval_s: float = 0.02) -> Iterator[News]:
        """Yield news as it comes, until every shard has ended."""
        while True:
            news = self.poll()
            if news.ops or news.events or news.ended:
                yield news
            if not self._shards:
                self._list()
                if not self._shards:
                    return
            time.sleep(interval_s)

    def close(self) -> None:
        """Close the files; idempotent."""
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()

    def _list(self) -> None:
        catalog = open_catalog(self._path)
        self._listed_at = time.monotonic()
        for files in catalog.shards:
            if files.name in self._done:
                continue
            known = self._shards.get(files.name)
            if known is not None:
                known.is_over = not files.alive
            elif files.alive or files.ring is not None or files.events is not None:
                self._shards[files.name] = _ShardTail(files, self._from_start)
            else:
                self._done.add(files.name)
        self._from_start = True


class _ShardTail:
    """One shard's cursors."""

    def __init__(self, files: ShardFiles, from_start: bool) -> None:
        self.is_over = not files.alive
        self.ended = False
        self._rank = files.state.rank
        self._strings = StringReader(files.strings) if files.strings else None
        self._values: dict[int, tuple[str, Any]] = {}
        self._decoder = Decoder(self._lookup, self._rank)
        self._ring = _ring(files)
        self._position = 0
        self._hole_since: float | None = None
        self._held: Records = np.empty(0, dtype=RECORD)
        self._events = _events(files)
        if self._ring is not None:
            head = self._ring.find_head()
            self._position = max(0, head - self._ring.capacity) if from_start else head
        if self._events is not None and not from_start:
            for _ in self._events.read():
                pass

    def poll(self, news: News, max_ops: int) -> None:
        over = self.is_over
        moved = False
        if self._events is not None:
            for event in self._events.read():
                event["rank"] = self._rank
                news.events.append(clean_event(event))
                moved = True
        if self._ring is not None:
            moved = self._poll_ring(news, max_ops) or moved
        self.ended = over and not moved

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _poll_ring(self, news: News, max_ops: int) -> bool:
        """Deliver new ops; returns whether the position moved."""
        assert self._ring is not None
        start = self._position
        waiting = len(self._held) > 0
        # What is written while this poll works is the next poll's, or it might never end.
        end = self._ring.scan(start)
        if end - start > max_ops:
            news.skipped += end - max_ops - start
            self._position = end - max_ops
        while self._position <= end:
            stop = min(end, self._position + _BLOCK_RECORDS)
            if stop == self._position:
                if not self._skip_hole(news):
                    break
                end = self._ring.scan(self._position)
                continue
            self._hole_since = None
            records = self._ring.committed(self._position, stop)
            news.missed += stop - self._position - len(records)
            self._position = stop
            self._deliver(records, news)
        if waiting and self._position == start:
            self._deliver(np.empty(0, dtype=RECORD), news)
        return self._position != start

    def _skip_hole(self, news: News) -> bool:
        """At a position without a record: move past it if it is a hole, and tell whether."""
        assert self._ring is not None
        following = self._ring.next_committed(self._position, self._ring.capacity)
        if following is None:
            head = self._ring.find_head()
            if head <= self._position:
                self._hole_since = None
                return False
            # The writer has lapped us: the oldest record still there is the next to read.
            following = max(head - self._ring.capacity // 2, self._position + 1)
        elif not self.is_over:
            now = time.monotonic()
            self._hole_since = self._hole_since or now
            if now - self._hole_since < _HOLE_PATIENCE_S:
                return False
        news.missed += following - self._position
        self._position = following
        self._hole_since = None
        return True

    def _deliver(self, records: Records, news: News) -> None:
        if self._strings is not None:
            self._values = self._strings.refresh()
        held_before = set(self._held["op_id"].tolist())
        records = np.concatenate([self._held, records])
        records = records[np.argsort(records["op_id"], kind="stable")]
        ids = records["op_id"]
        changes = np.flatnonzero(ids[1:] != ids[:-1]) + 1
        starts: list[int] = [0, *changes.tolist()] if len(ids) else []
        wide = records["n_in"] > RECORD_INPUTS
        hit = (records["flags"] & int(OpFlag.HIT)) != 0
        may_go_on = (records["kind"] == RecordKind.OP) & (wide | hit)
        rows = records.tolist()
        held: list[Records] = []
        for low, high in zip(starts, [*starts[1:], len(ids)], strict=True):
            fresh = not self.is_over and int(ids[low]) not in held_before
            if fresh and may_go_on[low:high].any() and _goes_on(records[low:high]):
                held.append(records[low:high])
                continue
            op = self._decoder.op_of_rows(rows[low:high])
            if op is not None:
                news.ops.append(op)
        self._held = np.concatenate(held) if held else np.empty(0, dtype=RECORD)

    def _lookup(self, number: int) -> Any:
        entry = self._values.get(number)
        return None if entry is None else entry[1]


def _goes_on(parts: Records) -> bool:
    """Whether more records of this op may follow: more inputs, or statistics of a hit."""
    main = parts[parts["kind"] == RecordKind.OP]
    if len(main) != 1:
        return False
    wide = int(main["n_in"][0]) > RECORD_INPUTS * (
        1 + int((parts["kind"] == RecordKind.INPUTS).sum())
    )
    tensors = int(main["n_in"][0]) + int(main["n_out"][0])
    hit = bool(main["flags"][0] & OpFlag.HIT)
    return wide or (hit and int((parts["kind"] == RecordKind.STAT).sum()) < tensors)


def _ring(files: ShardFiles) -> RingReader | None:
    try:
        return open_ring(files.ring) if files.ring else None
    except TraceError:
        return None


def _events(files: ShardFiles) -> LineFollower | None:
    try:
        return LineFollower(files.events) if files.events else None
    except OSError:
        return None
