"""Colours that people with any colour vision tell apart.

The scale is cividis (Nuñez, Anderton, Renslow 2018), the accents are Okabe and Ito's.
"""

from __future__ import annotations

import math

# Every 16th entry of the 256 of cividis, and the last.
_CIVIDIS = (
    "#00224e", "#002d6b", "#16396d", "#30456c", "#42506c", "#525c6d", "#61686f", "#6e7573",
    "#7d8078", "#8c8c78", "#9b9977", "#aba574", "#bcb36e", "#cdc167", "#dfcf5c", "#f1dd4c",
    "#fee838",
)  # fmt: skip

ACCENTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Blue, vermillion, bluish green, reddish purple."""

LEVELS = 32
"""Steps of the scale in a heat map."""


def level_of(value: float, low: float, high: float) -> int:
    """Return the step of a logarithmic scale, 0 to ``LEVELS - 1``.

    Examples:
        >>> level_of(1e-3, 1e-3, 1e3), level_of(1e3, 1e-3, 1e3), level_of(0.0, 1e-3, 1e3)
        (0, 31, 0)
    """
    if value <= low or high <= low:
        return 0
    share = math.log(value / low) / math.log(high / low)
    return min(int(share * LEVELS), LEVELS - 1)


def cividis(share: float) -> str:
    """Return the colour at a place of the scale, 0 (least) to 1 (greatest).

    Examples:
        >>> cividis(0.0), cividis(1.0)
        ('#00224e', '#fee838')
    """
    at = min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    low = min(int(at), len(_CIVIDIS) - 2)
    mixed = (
        round(a + (b - a) * (at - low))
        for a, b in zip(_rgb(_CIVIDIS[low]), _rgb(_CIVIDIS[low + 1]), strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
