"""Non-finite test and single-pass statistics of arrays and tensors.

The native extension reads anything that offers DLPack's C exchange API (torch) or numpy's
array interface; without it numpy does the same, slower. Neither needs a framework.
``TRACELENS_NO_NATIVE=1`` does without the extension, at run time as when it is built.
"""

from __future__ import annotations

import math
import os
from typing import Any

from tracelens.events import Stats

try:
    if os.environ.get("TRACELENS_NO_NATIVE"):
        raise ImportError
    from tracelens.stats import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

HAS_NATIVE = native is not None
"""Whether the compiled extension is installed."""

FIRST_BAD = 4
"""How many indices of bad elements a record holds."""

_FLOAT32_MAX = 3.4028234663852886e38


def check(x: Any) -> int:
    """Return 1 if an array holds a NaN or Inf, 0 if not, -1 if it cannot be read here.

    Args:
        x: a numpy array or a CPU tensor of any layout and dtype; complex counts by parts.

    Examples:
        >>> import numpy as np
        >>> check(np.array([1.0, np.inf])), check(np.arange(3)), check("text")
        (1, 0, -1)
    """
    if native is not None:
        return native.check(x)
    from tracelens.stats import fallback

    return fallback.check(x)


def first_nonfinite(arrays: list[Any]) -> int:
    """Return the index of the first array with a NaN or Inf, -1 if none is known to have one."""
    if native is not None:
        return native.first_nonfinite(arrays)
    return next((i for i, x in enumerate(arrays) if check(x) == 1), -1)


def measure(x: Any) -> Stats | None:
    """Return all statistics of an array, or ``None`` if it cannot be read here.

    ``std`` divides by the number of finite elements. Of a complex array the counts are by
    element (NaN if a part is) and the rest is of magnitudes. Values beyond float32's range
    are given as its largest: records keep statistics in float32.

    Args:
        x: as for `check`.

    Examples:
        >>> import numpy as np
        >>> s = measure(np.array([1.0, 3.0, np.nan], dtype="float32"))
        >>> s.numel, s.nan, s.vmin, s.vmax, s.mean, s.std
        (3, 1, 1.0, 3.0, 2.0, 1.0)
    """
    if native is not None:
        raw = native.stats(x)
    else:
        from tracelens.stats import fallback

        raw = fallback.stats(x)
    if raw is None:
        return None
    numel, nan, posinf, neginf, zero, finite = raw[:6]
    if finite == 0:
        return Stats(numel, nan, posinf, neginf, zero)
    vmin, vmax, mean, std, l2 = (clamp(value) for value in raw[6:])
    return Stats(numel, nan, posinf, neginf, zero, vmin, vmax, mean, std, l2)


def first_bad(x: Any, wanted: int = FIRST_BAD) -> tuple[int, ...]:
    """Return the row-major flat indices of the first NaN or Inf elements.

    Args:
        x: as for `check`.
        wanted: at most this many (no more than 64).
    """
    if native is not None:
        return native.first_bad(x, wanted)
    from tracelens.stats import fallback

    return fallback.first_bad(x, wanted)


def clamp(value: float) -> float:
    """Return a statistic as float32 can hold it: finite, of the same sign."""
    if math.isnan(value):
        return 0.0
    return max(-_FLOAT32_MAX, min(_FLOAT32_MAX, value))
