"""Where the ticks of an axis go."""

from __future__ import annotations

import math
from dataclasses import dataclass

_NICE = (1, 2, 2.5, 5, 10)
_LOG_FROM = 500.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis.

    Attributes:
        low: value at the bottom.
        high: value at the top.
        log: logarithmic; both are above zero then.
        base: ticks are round multiples of it.
    """

    low: float
    high: float
    log: bool = False
    base: float = 1.0

    def place(self, value: float) -> float:
        """Return how far up a finite value lies, 0 to 1."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = value / (self.high - self.low) - self.low / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Return a few values to name, within the axis."""
        if self.log:
            first, last = math.log10(self.low), math.log10(self.high)
            stride = max(1, math.ceil((last - first) / 4))
            powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1, stride)
            return [10.0**power for power in powers]
        ticks = nice_ticks(self.low / self.base, self.high / self.base)
        return [tick * self.base for tick in ticks]


def axis_of(values: list[float], unit: str = "") -> Axis:
    """Return the axis that shows finite values, with room above and below.

    It is logarithmic where positive values span more than two and a half powers of ten.

    Args:
        values: finite.
        unit: ``"bytes"`` makes ticks round in powers of 1024.
    """
    if not values:
        return Axis(0.0, 1.0)
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOG_FROM:
        return Axis(low / 1.2, high * 1.2, log=True)
    if not math.isfinite(high - low):  # near the largest double
        return Axis(low / 4, high / 4)
    if high == low:
        room = abs(high) / 2 or 1.0
        return Axis(low - room, high + room)
    room = (high - low) * 0.06
    base = 1024.0 ** max(int(math.log(high, 1024)), 0) if unit == "bytes" and high >= 1 else 1.0
    return Axis(0.0 if 0 <= low <= high / 3 else low - room, high + room, base=base)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers within a stretch.

    Examples:
        >>> nice_ticks(0.0, 39.0)
        [0.0, 10.0, 20.0, 30.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(n * power for n in _NICE if n * power >= rough * 0.999)
    first = math.ceil(low / stride - 1e-9)
    last = math.floor(high / stride + 1e-9)
    return [n * stride for n in range(first, last + 1)]
