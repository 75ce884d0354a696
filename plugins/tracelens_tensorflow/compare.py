"""Compares what a second run gave with what the first one gave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelens_tensorflow import tensors

TOLERANCE = 1e-2
"""Relative to the largest finite element: kernels that were fused or compiled for the first run
round otherwise, and a few steps of an optimizer multiply that."""


@dataclass
class Comparison:
    """How many tensors were compared, and came out equal bit for bit or near.

    Near are those that are non-finite at the same places and differ little elsewhere.
    """

    compared: int = 0
    equal: int = 0
    close: int = 0

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.compared + other.compared, self.equal + other.equal, self.close + other.close
        )


def compare(first: Iterable[Any], second: Iterable[Any]) -> Comparison:
    """Compare floating tensors pairwise.

    Args:
        first: eager tensors, ``None`` for one that is unknown.
        second: eager tensors.
    """
    found = Comparison()
    for one, other in zip(first, second, strict=False):
        if one is None or other is None:
            continue
        a, b = tensors.array_of(one), tensors.array_of(other)
        if a is None or b is None:
            continue
        found.compared += 1
        if a.shape != b.shape:
            continue
        if np.array_equal(_bytes(a), _bytes(b)):
            found.equal += 1
        elif _near(a, b):
            found.close += 1
    return found


def _bytes(a: Any) -> Any:
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8)


def _near(a: Any, b: Any) -> bool:
    with np.errstate(all="ignore"):
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return False
        if not finite.any():
            return True
        x, y = a[finite], b[finite]
        largest = max(float(np.max(np.abs(x))), float(np.max(np.abs(y))), 1e-30)
        return float(np.max(np.abs(x - y))) <= TOLERANCE * largest
