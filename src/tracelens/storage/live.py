"""The part of a shard that is not sealed yet: its ring, its interned strings, its event lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tracelens.errors import TraceError
from tracelens.storage.catalog import ShardFiles
from tracelens.storage.format import RECORD, RECORD_BYTES
from tracelens.storage.health import Problem
from tracelens.storage.jsonlines import MAX_LINE_BYTES
from tracelens.storage.records import RecordIndex
from tracelens.storage.ring import Records, RingReader
from tracelens.storage.strings import StringReader

MAX_RING_BYTES = (1 << 30) + (1 << 16)
"""A larger ring is refused: a sparse hostile file must not fill memory."""

_READ_BYTES = 1 << 20


class LineFollower:
    """Reads whole JSON lines of a file that grows, through a descriptor that outlives its name."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Open the file.

        Raises:
            OSError: it is gone or cannot be read.
        """
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        self.offset = max(0, offset)
        self.damaged_lines = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of the lines completed since the last call."""
        pending = b""
        while True:
            data = os.pread(self._fd, _READ_BYTES, self.offset + len(pending))
            pending += data
            *lines, rest = pending.split(b"\n")
            for line in lines:
                self.offset += len(line) + 1
                value = _object(line)
                if value is None:
                    self.damaged_lines += 1
                else:
                    yield value
            pending = rest
            if len(pending) > MAX_LINE_BYTES:
                self.offset += len(pending)
                self.damaged_lines += 1
                pending = b""
            if not data:
                return

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("t"), str) else None


class LiveShard:
    """A shard's unsealed records, copied once.

    Attributes:
        index: the ops in the ring that no segment holds yet (stream), or all of it (flight).
        holes: positions that a dead writer's killed threads reserved and never wrote.
        problem: why the ring could not be read, ``None`` if it could.
    """

    def __init__(self, shard: ShardFiles) -> None:
        self.holes = 0
        self.problem: Problem | None = None
        self.strings = _read_strings(shard)
        records = self._records(shard)
        self.records = records
        self.index = RecordIndex(records, self.lookup, shard.state.rank)

    def lookup(self, number: int) -> Any:
        """Return an interned value, ``None`` if it is unknown."""
        entry = self.strings.get(number)
        return None if entry is None else entry[1]

    def _records(self, shard: ShardFiles) -> Records:
        parts: list[Records] = []
        if shard.kept is not None:
            parts.append(read_kept(shard.kept))
        if shard.ring is not None:
            try:
                parts.append(self._ring_records(shard, shard.ring))
            except TraceError as error:
                self.problem = Problem("unreadable_ring", shard.name, str(error))
        if not parts:
            return np.empty(0, dtype=RECORD)
        records = np.concatenate(parts)
        return records[np.unique(records["seq"], return_index=True)[1]]

    def _ring_records(self, shard: ShardFiles, path: Path) -> Records:
        ring = open_ring(path)
        try:
            head = ring.find_head()
            start = max(0, head - ring.capacity)
            if shard.state.mode == "stream":
                start = max(start, shard.state.sealed)
            records = ring.committed(start, head)
            if not shard.alive:
                self.holes = max(0, head - start - len(records))
            return records
        finally:
            ring.close()


def read_kept(path: Path) -> Records:
    """Read the raw records that flight mode kept; a torn last one is left out."""
    try:
        size = min(path.stat().st_size, MAX_RING_BYTES)
        count = size // RECORD_BYTES
        return np.fromfile(path, dtype=RECORD, count=count) if count else np.empty(0, dtype=RECORD)
    except OSError:
        return np.empty(0, dtype=RECORD)


def open_ring(path: Path) -> RingReader:
    """Map a ring, refusing one that is too large to copy.

    Raises:
        TraceError: it is not a ring, damaged, or larger than ``MAX_RING_BYTES``.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise TraceError(f"{path}: cannot read the ring: {error.strerror}") from None
    if size > MAX_RING_BYTES:
        raise TraceError(f"{path}: a ring of {size} bytes is larger than any writer makes")
    return RingReader(path)


def _read_strings(shard: ShardFiles) -> dict[int, tuple[str, Any]]:
    if shard.strings is None:
        return {}
    try:
        return StringReader(shard.strings).refresh()
    except OSError:
        return {}
