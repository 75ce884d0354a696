"""What lies inside what on a thread, for millions of ranges without a loop over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Places = NDArray[np.int32]
"""Places of other rows, -1 for none."""


def nesting_order(
    thread: NDArray[Any],
    start_ns: Ints,
    end_ns: Ints,
    rank: Callable[[Ints], NDArray[Any]],
) -> Ints:
    """Return rows by thread and start, an outer range before those inside it.

    Args:
        thread: number of the thread, shape (n,).
        start_ns: shape (n,).
        end_ns: shape (n,).
        rank: gives of rows a number each: of two equal ranges the one with the smaller is outside.
    """
    if not len(start_ns):
        return np.zeros(0, dtype=np.int64)
    try:
        key = thread_times(thread, start_ns, int(start_ns.min()), int(start_ns.max()))
    except OverflowError:
        rows = np.arange(len(start_ns))
        return np.asarray(np.lexsort((rank(rows), -end_ns, start_ns, thread)), dtype=np.int64)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same])
    if len(tied):
        rows = order[tied]
        order[tied] = rows[np.lexsort((rank(rows), -end_ns[rows], ordered[tied]))]
    return order


def thread_times(thread: NDArray[Any], times_ns: Ints, low_ns: int, high_ns: int) -> Ints:
    """Return numbers that sort by thread, then time; threads apart by more than any two times.

    Args:
        thread: from 0, shape (n,).
        times_ns: shape (n,).
        low_ns: the earliest of all times that are compared.
        high_ns: the latest of them.

    Raises:
        OverflowError: there are too many threads for the range of times.
    """
    span = high_ns - low_ns + 1
    if len(thread) and (int(thread.max()) + 1) * span >= 1 << 62:
        raise OverflowError("too many threads for the range of times")
    found: Ints = thread.astype(np.int64)
    found *= span
    found += times_ns
    found -= low_ns
    return found


def parents(thread: NDArray[Any], start_ns: Ints, end_ns: Ints, slack_ns: int = 0) -> Places:
    """Return the innermost range around each one, for rows in ``nesting_order``.

    It is the nearest row before that ends after this one starts and not before this one ends. Rows
    in between are skipped in leaps that double, as each row knows how far it can be skipped.

    Args:
        thread: shape (n,).
        start_ns: shape (n,).
        end_ns: shape (n,).
        slack_ns: by how much an inner range may end after the outer one: what rounding does.

    Examples:
        >>> at = np.array([0, 1, 2, 6]), np.array([9, 5, 3, 8])
        >>> parents(np.zeros(4, int), *at).tolist()
        [-1, 0, 1, 0]
    """
    rows = len(start_ns)
    found = np.arange(-1, rows - 1, dtype=np.int32)
    if not rows:
        return found
    first = np.flatnonzero(np.r_[True, thread[1:] != thread[:-1]])
    found[first] = -1
    need = np.maximum(end_ns - slack_ns, start_ns + 1)
    open_ = np.flatnonzero(found >= 0)
    while len(open_):
        before = found[open_]
        open_ = open_[end_ns[before] < need[open_]]
        found[open_] = found[found[open_]]
        open_ = open_[found[open_] >= 0]
    return found


def nearest(parent: Places, wanted: NDArray[np.bool_]) -> Places:
    """Return the nearest range around each one that is wanted, not itself, or -1.

    Args:
        parent: shape (n,).
        wanted: shape (n,).
    """
    found: Places = parent.copy()
    open_ = np.flatnonzero(found >= 0)
    while len(open_):
        open_ = open_[~wanted[found[open_]]]
        found[open_] = found[found[open_]]
        open_ = open_[found[open_] >= 0]
    return found


def running_at(
    thread: NDArray[Any], t_ns: Ints, threads: NDArray[Any], start_ns: Ints, end_ns: Ints,
    parent: Places,
) -> Places:  # fmt: skip
    """Return the innermost range that runs on a thread at a time, or -1 (also if not to be told).

    Args:
        thread: whose, shape (m,).
        t_ns: when, shape (m,).
        threads: of the ranges in ``nesting_order``, shape (n,).
        start_ns: shape (n,).
        end_ns: shape (n,).
        parent: what ``parents`` returns for them.
    """
    found = np.full(len(t_ns), -1, dtype=np.int32)
    if not len(t_ns) or not len(start_ns):
        return found
    low = min(int(start_ns.min()), int(t_ns.min()))
    high = max(int(start_ns.max()), int(t_ns.max()))
    try:
        key = thread_times(threads, start_ns, low, high)
        wanted = thread_times(thread, t_ns, low, high)
    except OverflowError:
        return found
    found[:] = np.searchsorted(key, wanted, side="right") - 1
    del key
    other = (found >= 0) & (threads[found] != thread)
    found[other] = -1
    open_ = np.flatnonzero(found >= 0)
    while len(open_):
        open_ = open_[end_ns[found[open_]] <= t_ns[open_]]
        found[open_] = parent[found[open_]]
        open_ = open_[found[open_] >= 0]
    return found
