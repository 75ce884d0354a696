"""The native extension's functions in numpy, for installs without it.

Equal to it, counts exactly and the rest to rounding; a test runs both on the same arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20
"""Elements converted to float64 at a time, to bound memory."""

_HALF_LIKE = {
    "bfloat16": (0x7FFF, 0x7F80),
    "float8_e4m3fn": (0x7F, 0x7F),
    "float8_e5m2": (0x7F, 0x7C),
}
"""By dtypes numpy lacks: mask of the magnitude's bits, smallest non-finite magnitude."""

RawStats = tuple[int, int, int, int, int, int, float, float, float, float, float]


class Bits:
    """An array of a dtype numpy lacks, as unsigned integers of its bits.

    Args:
        bits: uint16 (``bfloat16``) or uint8 (``float8_*``).
        dtype: the dtype's name.
    """

    def __init__(self, bits: NDArray[Any], dtype: str) -> None:
        self.bits = bits
        self.dtype = dtype

    def bad(self) -> NDArray[np.bool_]:
        """Return where it is not finite."""
        mask, least = _HALF_LIKE[self.dtype]
        result: NDArray[np.bool_] = (self.bits & mask) >= least
        return result

    def decode(self) -> NDArray[np.float64]:
        """Return the values."""
        if self.dtype == "bfloat16":
            return (self.bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if self.dtype == "float8_e5m2":
            return (self.bits.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
        values: NDArray[np.float64] = _E4M3FN[self.bits]
        return values


def _decode_e4m3fn(byte: int) -> float:
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    value = mantissa * 2.0**-9 if exponent == 0 else (mantissa | 8) * 2.0 ** (exponent - 10)
    return -value if byte & 0x80 else value


_E4M3FN = np.array([_decode_e4m3fn(byte) for byte in range(256)])


def as_array(x: Any) -> NDArray[Any] | Bits | None:
    """Return an array or a CPU tensor as numpy sees it, ``None`` if it cannot."""
    if isinstance(x, (np.ndarray, np.generic)):
        array = np.asarray(x)
    elif hasattr(x, "detach") and hasattr(x, "dtype"):
        return _from_tensor(x)
    elif hasattr(x, "__array_interface__"):
        array = np.asarray(x)
    else:
        return None
    return array if array.dtype.kind in "fciub" else None


def _from_tensor(x: Any) -> NDArray[Any] | Bits | None:
    name = str(x.dtype).rpartition(".")[2]
    try:
        plain = x.detach()
        if name not in _HALF_LIKE:
            array: NDArray[Any] = plain.resolve_conj().resolve_neg().numpy()
            return array
        import sys

        # The tensor's framework is imported already, or there would be no tensor.
        torch = sys.modules["torch"]
        wide = name == "bfloat16"
        bits = plain.view(torch.int16 if wide else torch.uint8).numpy()
        return Bits(bits.view(np.uint16) if wide else bits, name)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def check(x: Any) -> int:
    """See `tracelens.stats.check`."""
    array = as_array(x)
    if array is None:
        return -1
    return int(bool(_bad(array).any()))


def first_bad(x: Any, wanted: int) -> tuple[int, ...]:
    """See `tracelens.stats.first_bad`."""
    array = as_array(x)
    if array is None or wanted <= 0:
        return ()
    return tuple(int(i) for i in np.flatnonzero(_bad(array))[: min(wanted, 64)])


def stats(x: Any) -> RawStats | None:
    """Return numel, nan, posinf, neginf, zero, finite, min, max, mean, std, l2.

    Two passes in float64; the second subtracts the mean, so that std keeps its digits.
    """
    array = as_array(x)
    if array is None:
        return None
    values = array.decode() if isinstance(array, Bits) else array
    with np.errstate(all="ignore"):
        return _stats(values.reshape(-1))


def _stats(flat: NDArray[Any]) -> RawStats:
    counts = np.zeros(5, dtype=np.int64)
    low, high = np.inf, -np.inf
    total = 0.0
    scale = _scale(flat)
    for part in _parts(flat):
        finite = part[np.isfinite(part)]
        counts += (
            int(np.isnan(part).sum()),
            int(np.isposinf(part).sum()),
            int(np.isneginf(part).sum()),
            int((part == 0).sum()),
            finite.size,
        )
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            total += float((finite * scale).sum())
    nan, posinf, neginf, zero, n = (int(count) for count in counts)
    if n == 0:
        return flat.size, nan, posinf, neginf, zero, 0, 0.0, 0.0, 0.0, 0.0, 0.0
    mean = total / n
    m2 = square = 0.0
    for part in _parts(flat):
        finite = part[np.isfinite(part)] * scale
        m2 += float(((finite - mean) ** 2).sum())
        square += float((finite**2).sum())
    std, l2 = float(np.sqrt(m2 / n)) / scale, float(np.sqrt(square)) / scale
    return flat.size, nan, posinf, neginf, zero, n, low, high, mean / scale, std, l2


def _bad(array: NDArray[Any] | Bits) -> NDArray[np.bool_]:
    if isinstance(array, Bits):
        return array.bad()
    if array.dtype.kind not in "fc":
        return np.zeros(array.shape, dtype=np.bool_)
    result: NDArray[np.bool_] = ~np.isfinite(array)
    return result


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if part.dtype.kind == "c":
            part = part.astype(np.complex128)
            # abs(Inf + NaN i) is Inf, but an element with a NaN part counts as NaN.
            part = np.where(np.isnan(part.real) | np.isnan(part.imag), np.nan, np.abs(part))
        yield part.astype(np.float64)


def _scale(flat: NDArray[Any]) -> float:
    """Return a power of two that keeps squares of float64 extremes in range."""
    if flat.dtype not in (np.float64, np.complex128) or not flat.size:
        return 1.0
    largest = 0.0
    for part in _parts(flat):
        finite = part[np.isfinite(part)]
        if finite.size:
            largest = max(largest, float(np.abs(finite).max()))
    if largest == 0.0 or 1e-140 <= largest < 1e140:
        return 1.0
    return float(2.0 ** min(1000, -int(np.floor(np.log2(largest))) - 1))
