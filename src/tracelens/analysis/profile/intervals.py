"""Sets of half-open time intervals ``[start, end)`` in whole nanoseconds, and their arithmetic.

Everything is exact int64 and vectorised: the cost is one sort of the boundaries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Intervals:
    """Disjoint, non-touching intervals in ascending order.

    Attributes:
        starts: int64 of shape (n,), ns.
        ends: int64 of shape (n,), ns; each above its start.

    Examples:
        >>> busy = union([0, 5, 20], [10, 12, 30])
        >>> busy.starts.tolist(), busy.ends.tolist(), busy.total
        ([0, 20], [12, 30], 22)
        >>> busy.within([0, 8], [10, 25]).tolist()
        [10, 9]
    """

    starts: Ints
    ends: Ints

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def _before(self) -> Ints:
        """Covered length before each interval, and the total at the end; shape (n + 1,)."""
        return np.concatenate([[0], np.cumsum(self.ends - self.starts)]).astype(np.int64)

    @property
    def total(self) -> int:
        """Covered length, ns."""
        return int(self._before[-1])

    def before(self, times: ArrayLike) -> Ints:
        """Return the covered length before each time; the shape of ``times``, ns."""
        t = np.asarray(times, dtype=np.int64)
        if not len(self):
            return np.zeros_like(t)
        at = np.searchsorted(self.starts, t, side="right")
        # The interval that holds the time counts up to it only.
        over = np.maximum(self.ends[np.maximum(at, 1) - 1] - t, 0)
        return np.asarray(self._before[at] - np.where(at > 0, over, 0), dtype=np.int64)

    def within(self, lows: ArrayLike, highs: ArrayLike) -> Ints:
        """Return the covered length in each window ``[low, high)``; an empty window has 0."""
        low, high = np.asarray(lows, dtype=np.int64), np.asarray(highs, dtype=np.int64)
        return self.before(np.maximum(high, low)) - self.before(low)

    def clip(self, low: int, high: int) -> Intervals:
        """Return what lies in ``[low, high)``."""
        return _made(np.clip(self.starts, low, high), np.clip(self.ends, low, high))

    def gaps(self, low: int, high: int) -> Intervals:
        """Return what of ``[low, high)`` is not covered."""
        inside = self.clip(low, high)
        return _made(np.append(low, inside.ends), np.append(inside.starts, max(low, high)))

    def __or__(self, other: Intervals) -> Intervals:
        """Return what either covers."""
        if not len(other):
            return self
        if not len(self):
            return other
        return union(
            np.concatenate([self.starts, other.starts]), np.concatenate([self.ends, other.ends])
        )

    def __and__(self, other: Intervals) -> Intervals:
        """Return what both cover."""
        if not len(self) or not len(other):
            return EMPTY
        # Ends stand before starts, and a stable sort keeps them there at the same time: touching
        # intervals have nothing in common.
        edges = np.concatenate([self.ends, other.ends, self.starts, other.starts])
        change = np.repeat(np.array([-1, 1]), len(self) + len(other))
        order = np.argsort(edges, kind="stable")
        edges, depth = edges[order], np.cumsum(change[order])
        both = np.flatnonzero(depth == 2)
        return _made(edges[both], edges[both + 1])

    def __sub__(self, other: Intervals) -> Intervals:
        """Return what this covers and the other does not."""
        if not len(self) or not len(other):
            return self
        return self & other.gaps(int(self.starts[0]), int(self.ends[-1]))


EMPTY = Intervals(np.empty(0, np.int64), np.empty(0, np.int64))


def union(starts: ArrayLike, ends: ArrayLike) -> Intervals:
    """Return what any of the intervals covers; empty and reversed ones cover nothing.

    Args:
        starts: shape (n,), ns, in any order.
        ends: shape (n,), ns.
    """
    s, e = np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    sound = e > s
    if not sound.all():
        s, e = s[sound], e[sound]
    if not len(s):
        return EMPTY
    if not (s[1:] >= s[:-1]).all():
        order = np.argsort(s, kind="stable")
        s, e = s[order], e[order]
    reach = np.maximum.accumulate(e)
    first = np.append(True, s[1:] > reach[:-1])
    return Intervals(s[first], reach[np.append(first[1:], True)])


def union_all(parts: Iterable[Intervals]) -> Intervals:
    """Return what any of several sets covers."""
    return reduce(Intervals.__or__, parts, EMPTY)


def shares(classes: Iterable[Intervals], lows: ArrayLike, highs: ArrayLike) -> Ints:
    """Split windows among classes of intervals, the earlier class winning where they overlap.

    Args:
        classes: m sets, the most important first.
        lows: starts of the windows, shape (w,), ns.
        highs: their ends.

    Returns:
        Shape (m + 1, w), ns: each class' own share, then what no class covers. The columns' sums
        are exactly the windows' lengths.
    """
    low, high = np.asarray(lows, dtype=np.int64), np.asarray(highs, dtype=np.int64)
    covered, rows, before = EMPTY, [], np.zeros_like(low)
    for part in classes:
        covered = covered | part
        now = covered.within(low, high)
        rows.append(now - before)
        before = now
    rows.append(np.maximum(high - low, 0) - before)
    return np.stack(rows)


def _made(starts: Ints, ends: Ints) -> Intervals:
    """Return intervals that are in order already, without the empty and with touching ones one."""
    sound = ends > starts
    s, e = starts[sound], ends[sound]
    if len(s) > 1 and (s[1:] == e[:-1]).any():
        apart = s[1:] > e[:-1]
        return Intervals(s[np.append(True, apart)], e[np.append(apart, True)])
    return Intervals(s, e)
