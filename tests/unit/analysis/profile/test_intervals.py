"""Interval arithmetic, compared with a grid of single nanoseconds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracelens.analysis.profile.intervals import EMPTY, Intervals, shares, union, union_all

END = 60
EDGES = st.lists(st.tuples(st.integers(0, END), st.integers(0, END)), max_size=12)


def grid(pairs: list[tuple[int, int]]) -> np.ndarray:
    """Return for each nanosecond whether any pair covers it."""
    covered = np.zeros(END, dtype=bool)
    for start, end in pairs:
        covered[start:end] = True
    return covered


def of(pairs: list[tuple[int, int]]) -> Intervals:
    return union([start for start, _ in pairs], [end for _, end in pairs])


def drawn(found: Intervals) -> np.ndarray:
    return grid(list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)))


def is_canonical(found: Intervals) -> bool:
    return bool((found.ends > found.starts).all() and (found.starts[1:] > found.ends[:-1]).all())


@given(EDGES)
def test_a_union_covers_what_any_interval_covers(pairs: list[tuple[int, int]]) -> None:
    found = of(pairs)
    assert (drawn(found) == grid(pairs)).all()
    assert found.total == grid(pairs).sum()
    assert (found.ends > found.starts).all()


@given(EDGES, EDGES)
def test_or_and_minus_agree_with_a_grid(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    a, b = of(left), of(right)
    assert (drawn(a | b) == (grid(left) | grid(right))).all()
    assert (drawn(a & b) == (grid(left) & grid(right))).all()
    assert (drawn(a - b) == (grid(left) & ~grid(right))).all()
    assert all(is_canonical(found) for found in (a & b, a - b))


@given(EDGES, st.integers(0, END), st.integers(0, END))
def test_a_window_holds_what_a_grid_holds(
    pairs: list[tuple[int, int]], low: int, high: int
) -> None:
    found, covered = of(pairs), grid(pairs)
    assert found.within([low], [high])[0] == covered[low:high].sum()
    assert found.before([low])[0] == covered[:low].sum()
    assert (drawn(found.clip(low, high))[low:high] == covered[low:high]).all()
    assert found.clip(low, high).total == covered[low:high].sum()
    assert found.gaps(low, high).total == (~covered[low:high]).sum()


@given(st.lists(EDGES, max_size=4), st.lists(st.tuples(st.integers(0, END), st.integers(0, END))))
def test_shares_give_each_moment_to_the_first_class_and_add_up(
    classes: list[list[tuple[int, int]]], windows: list[tuple[int, int]]
) -> None:
    lows, highs = [w[0] for w in windows], [w[1] for w in windows]
    rows = shares([of(pairs) for pairs in classes], lows, highs)
    for at, (low, high) in enumerate(windows):
        left = np.ones(END, dtype=bool)
        for row, pairs in enumerate(classes):
            now = grid(pairs) & left
            assert rows[row, at] == now[low:high].sum()
            left &= ~now
        assert rows[-1, at] == left[low:high].sum()
        assert rows[:, at].sum() == max(high - low, 0)


def test_times_beyond_what_a_double_holds_stay_exact() -> None:
    start = 1_700_000_000_123_456_789
    found = union([start, start + 5], [start + 3, start + 9])
    assert found.total == 7
    assert found.within([start + 1], [start + 6]).tolist() == [3]
    assert (found & union([start + 2], [start + 6])).starts.tolist() == [start + 2, start + 5]


def test_nothing_is_neutral() -> None:
    one = union([1], [4])
    assert (one | EMPTY).total == (EMPTY | one).total == (one - EMPTY).total == 3
    assert (one & EMPTY).total == (EMPTY & one).total == (EMPTY - one).total == EMPTY.total == 0
    assert union_all([]).total == 0
    assert EMPTY.before([5]).tolist() == [0]
    assert EMPTY.gaps(2, 5).total == 3
