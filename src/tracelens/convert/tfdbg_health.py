"""What the debug tensor of each tfdbg v2 mode says of the tensor it stands for.

The layouts are those of TensorFlow's ``DebugNumericSummaryV2`` op.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelens import stats
from tracelens.convert.protowire import WireError, fields
from tracelens.convert.tensorproto import DTYPES, Tensor, tensor
from tracelens.convert.tfdbg_events import Mode
from tracelens.events import Stats

_SHAPE_DIMS = 6


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one tensor.

    Attributes:
        dtype: framework-neutral name; empty if not known.
        shape: ``None`` if not known.
        stats: counts, or all statistics where its values are at hand; ``None`` if not counted.
        bad: whether it holds a NaN or Inf; ``None`` if nobody looked.
        values: its values, in mode FULL_TENSOR.
        first_bad: flat indices of its first bad elements.
    """

    dtype: str = ""
    shape: tuple[int, ...] | None = None
    stats: Stats | None = None
    bad: bool | None = None
    values: Tensor | None = None
    first_bad: tuple[int, ...] = ()


UNKNOWN = Health()


def health(mode: int, data: bytes) -> Health:
    """Read a debug tensor.

    Args:
        mode: the event's mode.
        data: the ``TensorProto``.

    Raises:
        WireError: it is damaged.
    """
    if mode in (Mode.UNSPECIFIED, Mode.NO_TENSOR) or not data:
        return UNKNOWN
    if mode == Mode.FULL_TENSOR:
        return _of_values(tensor(data))
    numbers = _numbers(data)
    if mode == Mode.CURT_HEALTH and len(numbers) >= 2:
        return Health(bad=numbers[1] != 0)
    if mode == Mode.CONCISE_HEALTH and len(numbers) >= 5:
        numel, neginf, posinf, nan = (int(number) for number in numbers[1:5])
        return _counted(Stats(numel, nan, posinf, neginf))
    if mode == Mode.FULL_HEALTH and len(numbers) >= 11:
        return _full_health(numbers)
    if mode == Mode.SHAPE and len(numbers) >= 4:
        rank = int(numbers[2])
        dims = tuple(int(number) for number in numbers[4 : 4 + rank])
        return Health(_dtype(numbers[1]), dims if rank <= _SHAPE_DIMS else None)
    return UNKNOWN


def _full_health(numbers: tuple[float, ...]) -> Health:
    rank, numel, neginf, posinf, nan, _, zero = (int(number) for number in numbers[3:10])
    found = _counted(Stats(numel, nan, posinf, neginf, zero))
    shape = () if rank == 0 else (numel,) if rank == 1 else None
    return Health(_dtype(numbers[2]), shape, found.stats, found.bad)


def _counted(counts: Stats) -> Health:
    return Health(stats=counts, bad=counts.nonfinite > 0)


def _of_values(found: Tensor) -> Health:
    array = measurable(found)
    if array is None:
        return Health(found.dtype, found.shape, values=found)
    measured = stats.measure(array)
    bad = measured is not None and measured.nonfinite > 0
    first = stats.first_bad(array) if bad else ()
    return Health(found.dtype, found.shape, measured, bad, found, first)


def measurable(found: Tensor) -> Any:
    """Return an array of floats that can be measured, ``None`` for what holds none."""
    if found.array is None or not found.array.size:
        return None
    if found.dtype == "bfloat16":
        return (found.array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return found.array if found.array.dtype.kind in "fc" else None


def _numbers(data: bytes) -> tuple[float, ...]:
    """Return a debug tensor's numbers; they are doubles but for old dumps."""
    dtype, content = 0, b""
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 4 and isinstance(value, bytes):
            content = value
    if not content:
        array = tensor(data).array
        return () if array is None else tuple(float(x) for x in array.ravel().tolist())
    code, size = ("d", 8) if dtype == 2 else ("f", 4)
    if len(content) % size:
        raise WireError(f"a debug tensor of {len(content)} bytes")
    return struct.unpack(f"<{len(content) // size}{code}", content)


def _dtype(code: float) -> str:
    return DTYPES.get(int(code) % 100, "")


def layout_entry(found: Health, device: str) -> list[object] | None:
    """Return a layout entry; its sizes are null where only the dtype is known."""
    if not found.dtype and not device:
        return None
    sizes = None if found.shape is None else list(found.shape)
    return [found.dtype, sizes, device]
