"""Reads TFRecord files a block at a time; damage is told, and what is sound is still given.

A record is its length (8 bytes), the length's checksum (4), the data, the data's checksum (4).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from tracelens.convert.crc32c import crc32c, masked, of_few

_HEAD = struct.Struct("<QI")
_FOOT = struct.Struct("<I")
_BLOCK_BYTES = 1 << 20
_BATCH = 1024
MAX_RECORD_BYTES = 1 << 30
"""A longer record is taken for damage."""


def records(path: Path, damage: Callable[[str], None]) -> Iterator[bytes]:
    """Yield a file's records in order.

    Args:
        path: the file.
        damage: told, in a sentence, of each record that is left out and of a torn end.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with open(path, "rb", buffering=_BLOCK_BYTES) as file:
        at, batch, held = 0, _Batch(path, damage), 0
        while at < size:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                yield from batch.take()
                damage(f"{path.name} ends within a record, at byte {at}")
                return
            length, length_crc = _HEAD.unpack(head)
            if masked(of_few(head[:8])) != length_crc or length > MAX_RECORD_BYTES:
                yield from batch.take()
                damage(f"{path.name} is damaged at byte {at}: the last {size - at} bytes are lost")
                return
            body = file.read(length + _FOOT.size)
            if len(body) < length + _FOOT.size:
                yield from batch.take()
                damage(f"{path.name} ends within a record, at byte {at}")
                return
            batch.add(at, body[:length], _FOOT.unpack_from(body, length)[0])
            held += length
            at += _HEAD.size + len(body)
            if len(batch) >= _BATCH or held > _BLOCK_BYTES:
                yield from batch.take()
                held = 0
        yield from batch.take()


class _Batch:
    """Records whose data is not checked yet: checking many at once is far cheaper."""

    def __init__(self, path: Path, damage: Callable[[str], None]) -> None:
        self._path = path
        self._damage = damage
        self._held: list[tuple[int, bytes, int]] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, at: int, data: bytes, crc: int) -> None:
        """Hold a record."""
        self._held.append((at, data, crc))

    def take(self) -> Iterator[bytes]:
        """Yield the records that are sound."""
        held, self._held = self._held, []
        crcs = crc32c([data for _, data, _ in held])
        for (at, data, stored), crc in zip(held, crcs, strict=True):
            if masked(crc) == stored:
                yield data
            else:
                self._damage(f"a record of {self._path.name} is damaged, at byte {at}")
