"""Times in µs with decimals as whole nanoseconds, without losing a digit.

A float holds µs to the nanosecond up to 2^43 of them (100 days): its spacing is 2^-10 µs there.
Unix times in µs are beyond, so those are read as the text that they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

UNKNOWN = -(1 << 63)
"""Stands for a time that is not given."""

EXACT_BELOW_US = float(1 << 43)
"""Up to this a float with decimals is exact to the nanosecond."""

_LARGEST_NS = float(1 << 62)
_COMMA, _POINT = b",.\n"[0], b",.\n"[1]


def from_floats(times_us: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return ns of µs; ``UNKNOWN`` where there is none or none that 63 bits hold.

    Args:
        times_us: NaN where not given, shape (n,).

    Examples:
        >>> from_floats(np.array([1.001, 1712195495519689.0])).tolist()
        [1001, 1712195495519689000]
    """
    whole = np.floor(times_us)
    with np.errstate(invalid="ignore", over="ignore"):
        sound = np.abs(times_us) * 1000 < _LARGEST_NS
        whole = np.where(sound, whole, 0.0)
        # The parts are scaled apart: their product with 1000 would not be exact for large times.
        part = np.where(sound, times_us - whole, 0.0)
    ns = whole.astype(np.int64) * 1000 + np.rint(part * 1000).astype(np.int64)
    return np.where(sound, ns, UNKNOWN)


def from_texts(times_us: Sequence[Raw]) -> NDArray[np.int64]:
    """Return ns of JSON numbers of µs, exactly; ``UNKNOWN`` where there is none.

    Digits below the nanosecond are rounded.

    Examples:
        >>> from_texts([Raw(b"1712195495519689.047"), Raw(b"7.5"), Raw(b"null")]).tolist()
        [1712195495519689047, 7500, -9223372036854775808]
    """
    found = _digits(b",".join(times_us), len(times_us))
    return np.array([_ns(each) for each in times_us], dtype=np.int64) if found is None else found


def _digits(text: bytes, count: int) -> NDArray[np.int64] | None:
    """Return ns of numbers ``123.456`` with commas between; ``None`` if one looks otherwise."""
    marks = np.frombuffer(text, dtype=np.uint8)
    points = np.flatnonzero(marks == _POINT)
    commas = np.append(np.flatnonzero(marks == _COMMA), len(marks))
    digits = int(np.count_nonzero((marks >= 48) & (marks <= 57)))
    if len(points) != count or len(commas) != count or digits + 2 * count - 1 != len(marks):
        return None
    starts = np.append(0, commas[:-1] + 1)
    decimals = commas - points - 1
    wholes = points - starts
    if not ((wholes > 0) & (wholes < 17) & (decimals > 0) & (decimals <= 3)).all():
        return None
    found = np.zeros(count, dtype=np.int64)
    for width in np.unique(wholes).tolist():
        rows = np.flatnonzero(wholes == width)
        found[rows] = _number(marks, starts[rows], width) * 1000
    for width in np.unique(decimals).tolist():
        rows = np.flatnonzero(decimals == width)
        found[rows] += _number(marks, points[rows] + 1, width) * 10 ** (3 - width)
    return found


def _number(marks: NDArray[np.uint8], starts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the numbers of ``width`` digits that start there, shape of ``starts``."""
    found = np.zeros(len(starts), dtype=np.int64)
    for at in range(width):
        found *= 10
        found += marks[starts + at] - 48
    return found


def _ns(raw: Raw) -> int:
    try:
        number = Decimal(bytes(raw).decode("ascii").strip('" '))
        ns = round(number * 1000)
    except (InvalidOperation, ValueError, OverflowError):
        return UNKNOWN
    return ns if abs(ns) < _LARGEST_NS else UNKNOWN
