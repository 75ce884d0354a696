"""Tensor values in safetensors files: our own writer and header reader, no pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracelens.errors import TraceError
from tracelens.storage.jsonlines import dumps
from tracelens.storage.manifest import BLOBS_DIR

CHUNK_BYTES = 256 << 20
"""A chunk file is closed once it holds this much."""

MAX_HEADER_BYTES = 16 << 20
"""A larger header is refused on read."""

_HEADER_ROOM = 1 << 18
_ENTRY_BYTES = 128

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""Framework-neutral dtype name -> safetensors' name; another dtype is stored as its bytes."""


class TensorStore:
    """Appends the tensors of one shard to chunk files.

    A chunk's header grows in the room left for it with every tensor, so that a killed process
    leaves a valid file. Equal bytes are stored once.
    """

    def __init__(self, run_dir: Path, shard: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Prepare; the first ``put`` makes the first file."""
        self._run_dir = run_dir
        self._directory = f"{BLOBS_DIR}/{shard}"
        self._chunk_bytes = chunk_bytes
        self._n_chunks = 0
        self._n_tensors = 0
        self._fd = -1
        self._end = 0
        self._header_end = 0
        self._by_hash: dict[tuple[str, str, tuple[int, ...]], dict[str, Any]] = {}

    def put(self, data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
        """Store one tensor.

        Args:
            data: its elements, row-major and little-endian.
            dtype: framework-neutral name.
            shape: sizes.

        Returns:
            The columns ``dtype, shape, size_bytes, file, key, offset, hash, dup_of`` of the
            table ``tensors``.

        Raises:
            OSError: the disk is full; the file is left as it was.
        """
        view = memoryview(data).cast("B")
        digest = "blake2b:" + hashlib.blake2b(view, digest_size=16).hexdigest()
        known = self._by_hash.get((digest, dtype, shape))
        if known is not None:
            return {**known, "dup_of": known["key"]}
        key = f"t{self._n_tensors}"
        start = self._place(len(view), len(shape))
        entry = {
            "dtype": DTYPES.get(dtype, "U8"),
            "shape": list(shape) if dtype in DTYPES else [len(view)],
            "data_offsets": [start - _HEADER_ROOM, start - _HEADER_ROOM + len(view)],
        }
        try:
            _write_all(self._fd, view, start)
            self._add_to_header(key, entry)
        except OSError:
            os.ftruncate(self._fd, start)
            raise
        self._n_tensors += 1
        self._end = start + len(view)
        place = {
            "dtype": dtype,
            "shape": dumps(list(shape)),
            "size_bytes": len(view),
            "file": self._file,
            "key": key,
            "offset": start,
            "hash": digest,
            "dup_of": None,
        }
        self._by_hash[digest, dtype, shape] = place
        return place

    def close(self) -> None:
        """Close the current chunk; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def _file(self) -> str:
        return f"{self._directory}/{self._n_chunks:06d}.safetensors"

    def _place(self, size: int, n_dims: int) -> int:
        """Return where the next tensor begins, in a new chunk if this one is full."""
        room = self._header_end + _ENTRY_BYTES + 16 * n_dims <= _HEADER_ROOM
        fits = self._end + size <= self._chunk_bytes or self._end == _HEADER_ROOM
        if self._fd < 0 or not (room and fits):
            self._new_chunk()
        return self._end

    def _new_chunk(self) -> None:
        self.close()
        self._n_chunks += 1
        path = self._run_dir / self._file
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        room = _HEADER_ROOM - 8
        try:
            _write_all(fd, memoryview(room.to_bytes(8, "little") + b"{}".ljust(room)), 0)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        self._fd, self._end, self._header_end = fd, _HEADER_ROOM, len("{") + 8

    def _add_to_header(self, key: str, entry: dict[str, Any]) -> None:
        """Put one entry in place of the header's closing brace, and a new brace after it."""
        comma = "," if self._header_end > len("{") + 8 else ""
        text = f'{comma}"{key}":{dumps(entry)}'.encode()
        _write_all(self._fd, memoryview(text + b"}"), self._header_end)
        self._header_end += len(text)


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """One tensor of a safetensors file: safetensors' dtype name, sizes, place in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_header(path: Path) -> dict[str, BlobEntry]:
    """Read which tensors a safetensors file holds.

    Raises:
        TraceError: the file is missing, damaged, or its header is larger than 16 MiB.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            entries = json.loads(file.read(length))
            return {
                name: _entry(entry, 8 + length, size)
                for name, entry in entries.items()
                if name != "__metadata__"
            }
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TraceError(f"{path}: not a valid safetensors file: {error}") from error


def _entry(entry: dict[str, Any], base: int, size: int) -> BlobEntry:
    low, high = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not (type(low) is type(high) is int and 0 <= low <= high <= size - base):
        raise ValueError("offsets outside of the file")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) > 1 << 48:
        raise ValueError("impossible shape")
    return BlobEntry(str(entry["dtype"]), shape, base + low, high - low)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
