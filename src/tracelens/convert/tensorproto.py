"""Reads TensorFlow's ``TensorProto``: field numbers are those of its ``tensor.proto``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracelens.convert.protowire import (
    Value,
    WireError,
    fields,
    integer,
    message,
    signed,
    varints,
)

_MAX_ELEMENTS = 1 << 28

DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
}
"""TensorFlow's ``DataType`` -> the framework-neutral name."""

_STORED_AS = {"bfloat16": "uint16", "float8_e5m2": "uint8", "float8_e4m3fn": "uint8"}
_NUMBERS = {5: "<f4", 6: "<f8", 9: "<f4", 12: "<f8"}
_INTEGERS = (7, 10, 11, 13, 16, 17)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's values.

    Attributes:
        dtype: framework-neutral name; what NumPy has no type for is held as its bits.
        shape: sizes.
        array: ``None`` for strings, resources and the like.
    """

    dtype: str
    shape: tuple[int, ...]
    array: NDArray[np.generic] | None


def tensor(data: bytes) -> Tensor:
    """Read a ``TensorProto``.

    Raises:
        WireError: it is damaged, or larger than 2**28 elements.
    """
    code, shape, content = 0, (), b""
    values: list[NDArray[np.generic]] = []
    shape_found: tuple[int, ...] = shape
    for number, value in fields(data):
        if number == 1:
            code = integer(value) % 100
        elif number == 2:
            shape_found = _shape(message(value))
        elif number == 4:
            content = message(value)
        elif number in _NUMBERS:
            values.append(_floats(value, _NUMBERS[number]))
        elif number in _INTEGERS:
            values.append(np.array([signed(each) for each in varints(value)], dtype=np.int64))
    dtype = DTYPES.get(code, f"type_{code}")
    if dtype in ("string", "resource", "variant") or dtype.startswith("type_"):
        return Tensor(dtype, shape_found, None)
    stored = np.dtype(_STORED_AS.get(dtype, dtype))
    return Tensor(dtype, shape_found, _filled(stored, shape_found, content, values))


def _filled(
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    content: bytes,
    values: list[NDArray[np.generic]],
) -> NDArray[np.generic]:
    numel = 1
    for size in shape:
        numel *= size
    if numel > _MAX_ELEMENTS:
        raise WireError(f"a tensor of {numel} elements")
    if content:
        if len(content) != numel * dtype.itemsize:
            raise WireError(f"{len(content)} bytes for {numel} elements of {dtype}")
        return np.frombuffer(content, dtype=dtype).reshape(shape)
    flat = np.concatenate(values) if values else np.zeros(0, dtype=np.int64)
    if dtype == np.float16:
        flat = flat.astype(np.uint16).view(np.float16)  # half_val holds the bits
    elif dtype.kind == "c":
        flat = flat.astype(np.dtype(f"f{dtype.itemsize // 2}")).view(dtype)
    flat = flat.astype(dtype)
    if len(flat) < numel:  # the last value stands for the rest
        rest = flat[-1] if len(flat) else np.zeros((), dtype=dtype)
        flat = np.concatenate([flat, np.full(numel - len(flat), rest, dtype=dtype)])
    return flat[:numel].reshape(shape)


def _floats(value: Value, kind: str) -> NDArray[np.generic]:
    size = int(kind[-1])
    raw = value if isinstance(value, bytes) else value.to_bytes(size, "little")
    if len(raw) % size:
        raise WireError(f"{len(raw)} bytes of {kind}")
    return np.frombuffer(raw, dtype=kind)


def _shape(body: bytes) -> tuple[int, ...]:
    sizes = []
    for number, value in fields(body):
        if number == 2:
            size = next((signed(integer(v)) for n, v in fields(message(value)) if n == 1), 0)
            sizes.append(max(size, 0))
    return tuple(sizes)
