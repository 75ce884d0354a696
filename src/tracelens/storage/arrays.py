"""Arrow arrays from NumPy's and back, by their buffers.

``pyarrow.array`` and ``Array.to_numpy`` import pandas where it is installed, to ask whether the
values are a Series: 0.3 s and 40 MB that no trace needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_BUILT_BY = {
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}


def numbers(values: NDArray[Any], type_: pa.DataType, null: NDArray[Any] | None = None) -> pa.Array:
    """Return numbers as an array.

    Args:
        values: integers, floats or booleans, shape (rows,).
        type_: what they become.
        null: true where a value is NULL, shape (rows,).

    Raises:
        pyarrow.ArrowInvalid: ``type_`` does not hold a value.
    """
    if values.dtype == np.bool_:
        values = values.astype(np.int8) if type_ != pa.bool_() else values
    if values.dtype == np.bool_:
        packed = pa.py_buffer(np.packbits(values, bitorder="little"))
        return pa.Array.from_buffers(type_, len(values), [_validity(null), packed])
    given = pa.from_numpy_dtype(values.dtype)
    data = pa.py_buffer(np.ascontiguousarray(values))
    array = pa.Array.from_buffers(given, len(values), [_validity(null), data])
    return array if given == type_ else array.cast(type_)


def texts(values: Sequence[str | None]) -> pa.Array:
    """Return strings as an array; ``None`` is NULL, lone surrogates become question marks."""
    null = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    encoded = [(value or "").encode("utf-8", "replace") for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum([len(each) for each in encoded], out=offsets[1:])
    buffers = [_validity(null), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    large = pa.Array.from_buffers(pa.large_string(), len(values), buffers)
    return large.cast(pa.string())


def coded(codes: NDArray[Any], values: Sequence[str]) -> pa.DictionaryArray:
    """Return strings of which few are distinct.

    Args:
        codes: index into ``values``, below 0 for NULL, shape (rows,).
        values: the distinct strings.
    """
    codes = codes.astype(np.int32, copy=False)
    null = codes < 0
    indices = numbers(codes, pa.int32(), null if null.any() else None)
    return pa.DictionaryArray.from_arrays(indices, texts(values))


def constant(value: Any, type_: pa.DataType, rows: int) -> pa.Array:
    """Return one value for all rows; ``None`` is NULL."""
    if value is None:
        return pa.nulls(rows, type_)
    if isinstance(value, str):
        if pa.types.is_dictionary(type_):
            return coded(np.zeros(rows, dtype=np.int32), [value])
        return pa.repeat(texts([value])[0], rows)
    return numbers(np.full(rows, value), type_)


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table; a value that a row lacks is NULL."""
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def to_numpy(column: pa.Array | pa.ChunkedArray, null: float = -1) -> NDArray[Any]:
    """Return a column of numbers; NULL becomes ``null``, whole numbers floats if that is NaN."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_part(chunk, null) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=column.type.to_pandas_dtype())


def _part(array: pa.Array, null: float) -> NDArray[Any]:
    kind = _BUILT_BY.get(array.type)
    if kind is None:
        return np.asarray(array.fill_null(null).to_numpy(zero_copy_only=False))
    validity, data = array.buffers()
    rows = len(array)
    if not rows or array.null_count == rows:
        return np.full(rows, null, dtype=np.float64 if rows and null != null else kind)
    values = np.frombuffer(data, dtype=kind)[array.offset : array.offset + len(array)]
    if not array.null_count:
        return values
    if null != null:
        kind = np.float64
    bits = np.unpackbits(np.frombuffer(validity, dtype=np.uint8), bitorder="little")
    known = bits[array.offset : array.offset + len(array)].astype(np.bool_)
    return np.where(known, values, np.asarray(null, dtype=kind))


def _column(values: list[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_string(type_):
        return texts(values)
    if pa.types.is_dictionary(type_):
        known: dict[str, int] = {}
        codes = [-1 if text is None else known.setdefault(text, len(known)) for text in values]
        return coded(np.array(codes, dtype=np.int32), list(known))
    kind = _BUILT_BY.get(type_)
    if kind is None:
        return pa.array(values, type_)
    null = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    plain = np.array([0 if value is None else value for value in values], dtype=kind)
    return numbers(plain, type_, null)


def _validity(null: NDArray[Any] | None) -> pa.Buffer | None:
    if null is None or not null.any():
        return None
    return pa.py_buffer(np.packbits(~null.astype(np.bool_), bitorder="little"))
