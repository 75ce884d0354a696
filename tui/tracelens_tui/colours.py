"""Colour scales for heatmaps that people with a colour-vision deficiency can read."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rich.color import Color

_CIVIDIS = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120),
    (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56),
)  # fmt: skip
_DIVERGING_DARK = ((86, 180, 233), (0, 114, 178), (38, 44, 54), (213, 94, 0), (250, 200, 90))
_DIVERGING_LIGHT = ((0, 70, 120), (86, 180, 233), (240, 240, 236), (230, 159, 0), (150, 60, 0))
_LEVELS = 128

SHADES = " ░▒▓█"
"""What stands for colours where there are none: the larger the magnitude, the darker."""


@lru_cache(maxsize=8)
def scale(kind: str) -> tuple[Color, ...]:
    """Return 128 colours.

    Args:
        kind: ``"sequential"``, ``"diverging-dark"`` or ``"diverging-light"``.
    """
    anchors = np.array(
        {
            "sequential": _CIVIDIS,
            "diverging-dark": _DIVERGING_DARK,
            "diverging-light": _DIVERGING_LIGHT,
        }[kind],
        dtype=np.float64,
    )
    places = np.linspace(0, len(anchors) - 1, _LEVELS)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, n]) for n in range(3)]
    return tuple(
        Color.from_rgb(*(round(channel[at]) for channel in channels)) for at in range(_LEVELS)
    )


def levels(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int64]:
    """Return the colour of each value, -1 where it is NaN.

    Args:
        values: float64 of any shape.
        low: the value of colour 0.
        high: the value of colour 127.
    """
    span = high - low or 1.0
    with np.errstate(invalid="ignore"):
        places = np.clip((values - low) / span, 0, 1) * (_LEVELS - 1)
    return np.where(np.isnan(places), -1, np.nan_to_num(places)).astype(np.int64)


def bounds(low: float, high: float) -> tuple[str, float, float]:
    """Return the kind of scale for a range, and its ends: a range across 0 is centred on it."""
    if low < 0 < high:
        most = max(-low, high)
        return "diverging", -most, most
    return "sequential", low, high
