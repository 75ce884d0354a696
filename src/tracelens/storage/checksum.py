"""The checksum that a shard's manifest keeps of each of its segments."""

from __future__ import annotations

import os
import zlib

_BLOCK_BYTES = 1 << 20


def file_crc32(path: str | os.PathLike[str]) -> int:
    """Return ``zlib.crc32`` of a whole file.

    Raises:
        OSError: the file cannot be read.
    """
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
