"""Stored tensors: found in the table ``tensors``, mapped from their safetensors files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.errors import TraceError
from tracelens.storage.catalog import Catalog, inside
from tracelens.storage.live import LineFollower
from tracelens.storage.manifest import BLOBS_DIR
from tracelens.storage.parquet_files import DamagedSegmentError, read_file
from tracelens.storage.shardreader import ShardReader
from tracelens.storage.tables import TABLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOB = re.compile(rf"{BLOBS_DIR}/r\d{{5}}-\d{{1,9}}(-d\d{{1,9}})?/[A-Za-z0-9_-]+\.safetensors")

STORED_AS = {
    "bool": "|b1", "uint8": "|u1", "int8": "|i1", "int16": "<i2", "uint16": "<u2", "int32": "<i4",
    "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "float16": "<f2", "float32": "<f4",
    "float64": "<f8", "complex64": "<c8", "complex128": "<c16", "bfloat16": "<u2",
    "float8_e4m3fn": "|u1", "float8_e5m2": "|u1",
}  # fmt: skip
"""Dtype names -> how NumPy maps the bytes; bfloat16 is widened, float8 stays as its bits."""


def list_tensors(readers: Sequence[ShardReader]) -> list[dict[str, Any]]:
    """Return every stored tensor's row of the table ``tensors``, by rank, step, then name."""
    found = [row for reader in readers for row in _rows(reader)]
    found.sort(key=lambda row: (row["rank"], row["step"], row["name"]))
    return found


def map_tensor(
    catalog: Catalog, readers: Sequence[ShardReader], name: str, step: int | None, rank: int
) -> NDArray[Any]:
    """Map one tensor read-only; see ``TraceReader.tensor``.

    Raises:
        TraceError: there is no such tensor, or its file is missing or damaged.
    """
    named = [row for row in list_tensors(readers) if row["name"] == name and row["rank"] == rank]
    if not named:
        names = sorted({row["name"] for reader in readers for row in _rows(reader)})
        known = ", ".join(names[:5]) + (" ..." if names[5:] else "") if names else "none is stored"
        raise TraceError(f"no tensor {name!r} of rank {rank} in the trace: {known}")
    chosen = [row for row in named if step is None or row["step"] == step]
    if not chosen:
        steps = [row["step"] for row in named]
        raise TraceError(
            f"tensor {name!r} was not stored in step {step}, but in {len(steps)} steps from "
            f"{min(steps)} to {max(steps)}"
        )
    return map_row(catalog, chosen[-1])


def map_row(catalog: Catalog, row: dict[str, Any]) -> NDArray[Any]:
    """Map the tensor of one row of the table ``tensors``.

    Raises:
        TraceError: the file is missing or outside the trace, or the row does not fit it.
    """
    where = f"tensor {row['name']!r} of step {row['step']}"
    file = str(row["file"])
    path = inside(catalog.run_dir, file) if _BLOB.fullmatch(file) else None
    if path is None:
        raise TraceError(f"{where}: its file {file[:80]!r} is missing or not part of the trace")
    stored = STORED_AS.get(row["dtype"])
    shape = _shape(row["shape"])
    if stored is None or shape is None:
        raise TraceError(f"{where}: dtype {row['dtype']!r} or its shape cannot be read")
    size = math.prod(shape) * np.dtype(stored).itemsize
    offset = row["offset"]
    if size != row["size_bytes"] or offset < 0 or offset + size > path.stat().st_size:
        raise TraceError(f"{where}: {path.name} is truncated or its entry is damaged")
    if size == 0:
        return np.empty(shape, dtype=stored)
    array: NDArray[Any] = np.memmap(path, dtype=stored, mode="r", offset=offset, shape=shape)
    if row["dtype"] == "bfloat16":
        # A bfloat16 is the upper half of the float32 of the same value.
        widened: NDArray[Any] = (array.astype("<u4") << np.uint32(16)).view("<f4")
        return widened
    return array


def _shape(text: str) -> tuple[int, ...] | None:
    try:
        sizes = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(sizes, list) or len(sizes) > 32:
        return None
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
        return None
    return tuple(sizes)


def _rows(reader: ShardReader) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in reader.segments("tensors"):
        try:
            rows += read_file(file).to_pylist()
        except DamagedSegmentError as error:
            reader.quarantine(file, str(error))
    if reader.shard.events is not None:
        try:
            lines = LineFollower(reader.shard.events, reader.shard.state.events_sealed_bytes)
        except OSError:
            return rows
        for event in lines.read():
            if event["t"] == "tensor":
                row = {column.name: event.get(column.name) for column in TABLES["tensors"]}
                row["rank"] = reader.shard.state.rank
                if _is_row(row):
                    rows.append(row)
        lines.close()
    return rows


def _is_row(row: dict[str, Any]) -> bool:
    """Whether a live event has what a row of ``tensors`` needs, in the right types."""
    for column in TABLES["tensors"]:
        value = row[column.name]
        if value is None and column.nullable:
            continue
        if type(value) is not (int if column.type.startswith("int") else str):
            return False
    return True
