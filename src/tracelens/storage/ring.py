"""The ring: a preallocated memory-mapped file of fixed-size records, one per process.

A record is committed once its ``seq`` equals ``position + 1``; ``seq`` is the last field
written. The pages belong to the kernel, so a killed process loses no committed record.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.errors import TraceError
from tracelens.storage.format import (
    HEADER_HEAD_OFFSET,
    HEADER_SEALED_OFFSET,
    HEADER_STRUCT,
    RECORD,
    RECORD_BYTES,
    RECORD_STRUCT,
    RING_HEADER_BYTES,
    RING_MAGIC,
    RING_VERSION,
)

Records = NDArray[np.void]
"""A one-dimensional array of dtype ``format.RECORD``."""

MAX_CAPACITY = 1 << 26
"""Refuse larger rings on read (11 GiB of records): a damaged header must not exhaust memory."""

_SPARE_BYTES = 64
"""Room in a new ring's header for the names of further frameworks."""

RING_STATE = ("shard", "rank", "attempt", "host", "pid", "framework", "mode")
"""What a ring's header repeats of its shard's state, so that a lost shard file can be remade."""

_COPY_RECORDS = 1 << 12
_RAW = np.dtype((np.void, RECORD_BYTES))

_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip


def capacity_for(ring_bytes: int) -> int:
    """Return the largest power of two of records that fits in ``ring_bytes`` (at least 64)."""
    return max(64, 1 << max(0, (ring_bytes // RECORD_BYTES).bit_length() - 1))


class RingReader:
    """Reads a ring that another process, or a dead one, wrote.

    Only a sealer opens it writable, and writes nothing but ``sealed``.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        """Map the ring.

        Raises:
            TraceError: the file is missing, is not a ring, or its header is damaged.
        """
        self.path = Path(path)
        try:
            with open(self.path, "r+b" if writable else "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < RING_HEADER_BYTES:
                    raise TraceError(f"{self.path}: not a ring: {size} bytes is too short")
                self._map = mmap.mmap(
                    file.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                )
        except OSError as error:
            raise TraceError(f"{self.path}: cannot read the ring: {error.strerror}") from error
        self.capacity, self.meta = _check_header(self.path, self._map, size)
        self._records = np.frombuffer(
            self._map, dtype=RECORD, count=self.capacity, offset=RING_HEADER_BYTES
        )
        self._mask = self.capacity - 1

    @property
    def framework(self) -> str | None:
        """The frameworks that the writer has named by now, None if the header says nothing."""
        try:
            found = _check_header(self.path, self._map, len(self._map))[1].get("framework")
        except TraceError:
            return None
        return found if isinstance(found, str) else None

    @property
    def sealed(self) -> int:
        """Positions below this are in Parquet segments."""
        return int.from_bytes(self._map[HEADER_SEALED_OFFSET : HEADER_SEALED_OFFSET + 8], "little")

    @property
    def head_hint(self) -> int:
        """A position not above the next one to be written; advisory."""
        return int.from_bytes(self._map[HEADER_HEAD_OFFSET : HEADER_HEAD_OFFSET + 8], "little")

    def find_head(self) -> int:
        """Return one past the highest committed position (0 for an empty ring)."""
        return highest_position(self._records) + 1

    def scan(self, start: int) -> int:
        """Return the first position from ``start`` on that is not committed."""
        seq = self._records["seq"]
        while True:
            slot = start & self._mask
            count = min(_COPY_RECORDS, self.capacity - slot)
            expected = np.arange(start + 1, start + count + 1, dtype=np.int64)
            missing = seq[slot : slot + count] != expected
            if missing.any():
                return start + int(missing.argmax())
            start += count

    def next_committed(self, start: int, window: int) -> int | None:
        """Return the first committed position in ``[start, start + window)``, if any."""
        positions = np.arange(start, start + min(window, self.capacity), dtype=np.int64)
        found = self._records["seq"][positions & self._mask] == positions + 1
        return start + int(found.argmax()) if found.any() else None

    def set_sealed(self, position: int) -> None:
        """Tell the writer that positions below ``position`` may be overwritten."""
        self._map[HEADER_SEALED_OFFSET : HEADER_SEALED_OFFSET + 8] = position.to_bytes(8, "little")

    def committed(self, start: int, stop: int) -> Records:
        """Copy the committed records of positions ``[start, stop)``, in position order.

        Positions that were never written (holes), are being written, or have been
        overwritten are left out. ``records["seq"] - 1`` are the positions that were found.
        """
        return copy_committed(self._records, start, stop)

    def close(self) -> None:
        """Unmap the file."""
        del self._records
        with contextlib.suppress(BufferError):  # a copy in another thread may still read
            self._map.close()


def copy_committed(ring: Records, start: int, stop: int) -> Records:
    """Copy committed records of positions ``[start, stop)`` out of a mapped ring.

    ``seq`` is read, the records copied, and ``seq`` read again: a record that a writer
    touched meanwhile shows another ``seq`` and is discarded (writers clear ``seq`` first).

    Args:
        ring: the mapped records, one slot each.
        start: first position.
        stop: position after the last; at most one capacity of positions is looked at.
    """
    capacity = len(ring)
    start = max(start, 0, stop - capacity)
    copy = np.empty(max(0, stop - start), dtype=RECORD)
    good = np.empty(len(copy), dtype=bool)
    for done in range(0, len(copy), _COPY_RECORDS):
        positions = np.arange(start + done, min(start + done + _COPY_RECORDS, stop))
        slot = int(positions[0]) % capacity
        until = min(len(positions), capacity - slot)
        for offset, live in (
            (0, ring[slot : slot + until]),
            (until, ring[: len(positions) - until]),
        ):
            part = slice(done + offset, done + offset + len(live))
            copy.view(_RAW)[part] = live.view(_RAW)
            expected = positions[offset : offset + len(live)] + 1
            good[part] = (copy["seq"][part] == expected) & (live["seq"] == expected)
    return copy if good.all() else copy[good]


def highest_position(ring: Records) -> int:
    """Return the highest committed position of a mapped ring, -1 if there is none."""
    seq = ring["seq"].copy()
    slots = np.arange(len(ring), dtype=np.int64)
    plausible = (seq > 0) & ((seq - 1) % len(ring) == slots)
    return int(seq[plausible].max()) - 1 if plausible.any() else -1


def _check_header(path: Path, data: mmap.mmap, size: int) -> tuple[int, dict[str, Any]]:
    """Return the capacity and the header's JSON, or raise ``TraceError``."""
    magic, version, record_bytes, capacity, _sealed, _head, json_bytes = HEADER_STRUCT.unpack(
        data[: HEADER_STRUCT.size]
    )
    if magic != RING_MAGIC:
        raise TraceError(f"{path}: not a TraceLens ring (wrong magic)")
    if version != RING_VERSION or record_bytes != RECORD_BYTES:
        raise TraceError(
            f"{path}: ring version {version} with {record_bytes}-byte records; this TraceLens "
            f"reads version {RING_VERSION} with {RECORD_BYTES}; upgrade TraceLens"
        )
    if capacity == 0 or capacity & (capacity - 1) or capacity > MAX_CAPACITY:
        raise TraceError(f"{path}: damaged ring header: capacity {capacity}")
    if size < RING_HEADER_BYTES + capacity * RECORD_BYTES:
        raise TraceError(f"{path}: truncated ring: {size} bytes for {capacity} records")
    try:
        start = HEADER_STRUCT.size
        if start + json_bytes > RING_HEADER_BYTES:
            raise ValueError("JSON too long")
        meta = json.loads(data[start : start + json_bytes])
        if not isinstance(meta, dict):
            raise ValueError("JSON is not an object")
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: damaged ring header: {error}") from error
    return int(capacity), meta


class RingWriter:
    """Creates a ring file and maps it for writing.

    Attributes:
        address: memory address of the header; records start ``RING_HEADER_BYTES`` after it.
        capacity: records that the ring holds.
        records: the mapped records.
    """

    def __init__(self, path: str | os.PathLike[str], ring_bytes: int, meta: dict[str, Any]) -> None:
        """Allocate, prefault and map the ring.

        Args:
            path: file to create; an existing one is an error.
            ring_bytes: upper bound on the size of the records.
            meta: JSON object kept in the header (run id, shard, pid).

        Raises:
            OSError: the file cannot be created or the disk has no room for it.
        """
        self.path = Path(path)
        self.capacity = capacity_for(ring_bytes)
        self.size_bytes = RING_HEADER_BYTES + self.capacity * RECORD_BYTES
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            try:
                # A sparse map on a full disk raises SIGBUS at the first write and kills the
                # program; allocating now turns that into an error at the start.
                os.posix_fallocate(fd, 0, self.size_bytes)
            except OSError:
                self.path.unlink()
                raise
            self.buffer = mmap.mmap(fd, self.size_bytes, flags=mmap.MAP_SHARED)
        finally:
            os.close(fd)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        self.records: Records = np.frombuffer(
            self.buffer, dtype=RECORD, count=self.capacity, offset=RING_HEADER_BYTES
        )
        # Touch every page, so that the training thread meets no first-write fault.
        np.frombuffer(self.buffer, dtype=np.uint8)[:: mmap.PAGESIZE] = 0
        self.write_header(meta)

    def write_header(self, meta: dict[str, Any], sealed: int = 0) -> None:
        """Write the header: layout of a record for outsiders, plus ``meta``."""
        fields = [
            [name, RECORD[name].base.str, int(np.prod(RECORD[name].shape, dtype=np.int64))]
            for name in RECORD.names or ()
        ]
        text = json.dumps({**meta, "struct": RECORD_STRUCT.format, "fields": fields})
        # Room for `set_framework`, which must not change the length.
        data = text.encode() + b" " * _SPARE_BYTES
        if HEADER_STRUCT.size + len(data) > RING_HEADER_BYTES:
            raise ValueError("the ring header's JSON does not fit")
        head = HEADER_STRUCT.pack(
            RING_MAGIC, RING_VERSION, RECORD_BYTES, self.capacity, sealed, sealed, len(data)
        )
        self.buffer[: len(head) + len(data)] = head + data

    def set_framework(self, framework: str) -> None:
        """Change the frameworks named in the header; one that does not fit is left out."""
        length_at = HEADER_STRUCT.size - 4
        length = int.from_bytes(self.buffer[length_at : length_at + 4], "little")
        start, end = HEADER_STRUCT.size, HEADER_STRUCT.size + length
        meta = json.loads(self.buffer[start:end])
        data = json.dumps({**meta, "framework": framework}).encode()
        if len(data) <= length:
            self.buffer[start:end] = data.ljust(length)

    @property
    def record_address(self) -> int:
        """Memory address of record 0."""
        return self.address + RING_HEADER_BYTES

    @property
    def sealed(self) -> int:
        """Positions below this are in Parquet segments and may be overwritten."""
        return int.from_bytes(
            self.buffer[HEADER_SEALED_OFFSET : HEADER_SEALED_OFFSET + 8], "little"
        )

    def set_sealed(self, position: int) -> None:
        """Tell writers that positions below ``position`` may be overwritten."""
        self.buffer[HEADER_SEALED_OFFSET : HEADER_SEALED_OFFSET + 8] = position.to_bytes(
            8, "little"
        )

    def set_head_hint(self, position: int) -> None:
        """Tell readers that positions below ``position`` were given out."""
        self.buffer[HEADER_HEAD_OFFSET : HEADER_HEAD_OFFSET + 8] = position.to_bytes(8, "little")

    @property
    def head_hint(self) -> int:
        """The last value of ``set_head_hint``, or a native engine's own counter."""
        return int.from_bytes(self.buffer[HEADER_HEAD_OFFSET : HEADER_HEAD_OFFSET + 8], "little")

    def detach(self) -> None:
        """Put private memory in the place of the file (for a forked child).

        Native code keeps writing to the same addresses, and must hit neither the parent's ring
        nor unmapped memory.
        """
        header = self.buffer[:RING_HEADER_BYTES]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc.mmap(self.address, self.size_bytes, protection, flags, -1, 0) != self.address:
            raise OSError(ctypes.get_errno(), "cannot detach the ring after a fork")
        self.buffer[:RING_HEADER_BYTES] = header

    def committed(self, start: int, stop: int) -> Records:
        """Copy committed records of positions ``[start, stop)``; see ``copy_committed``."""
        return copy_committed(self.records, start, stop)
