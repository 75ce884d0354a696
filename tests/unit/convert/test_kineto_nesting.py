"""Ranges of threads nest as a loop over all pairs says they do."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelens.convert import profile_nesting as nesting

RANGES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=24
)


def ordered(ranges: list[tuple[int, int, int]], far: int = 1) -> tuple[np.ndarray, ...]:
    """Return thread, start and end of ranges in nesting order; ``far`` apart in time."""
    columns = (np.array(column, dtype=np.int64) for column in zip(*ranges, strict=True))
    thread, start, length = columns
    start = start * far
    end = start + length * far
    order = nesting.nesting_order(thread, start, end, lambda rows: rows)
    return thread[order], start[order], end[order]


def around(place: int, thread: np.ndarray, start: np.ndarray, end: np.ndarray, slack: int) -> int:
    """Return the last range before that is open and holds this one, by looking at each."""
    for other in range(place - 1, -1, -1):
        if (
            thread[other] == thread[place]
            and end[other] > start[place]
            and end[other] >= end[place] - slack
        ):
            return other
    return -1


@given(RANGES, st.integers(0, 3))
@settings(deadline=None)
def test_a_parent_is_the_innermost_range_around(
    ranges: list[tuple[int, int, int]], slack: int
) -> None:
    thread, start, end = ordered(ranges)
    found = nesting.parents(thread, start, end, slack)
    expected = [around(place, thread, start, end, slack) for place in range(len(thread))]
    assert found.tolist() == expected


@given(RANGES, st.lists(st.booleans(), min_size=24, max_size=24))
@settings(deadline=None)
def test_the_nearest_wanted_range_is_found_up_the_chain(
    ranges: list[tuple[int, int, int]], flags: list[bool]
) -> None:
    thread, start, end = ordered(ranges)
    wanted = np.array(flags[: len(thread)])
    parent = nesting.parents(thread, start, end)
    expected = []
    for place in range(len(thread)):
        at = int(parent[place])
        while at >= 0 and not wanted[at]:
            at = int(parent[at])
        expected.append(at)
    assert nesting.nearest(parent, wanted).tolist() == expected


@given(RANGES, st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 20)), min_size=1))
@settings(deadline=None)
def test_what_runs_at_a_time_is_the_innermost_open_range(
    ranges: list[tuple[int, int, int]], asked: list[tuple[int, int]]
) -> None:
    # Children end with their parents here, as calls on a stack do.
    thread, start, end = ordered(ranges)
    parent = nesting.parents(thread, start, end)
    crossing = [
        (thread[i] == thread[j] and start[i] < start[j] < end[i] < end[j])
        for i in range(len(thread))
        for j in range(len(thread))
    ]
    if any(crossing):
        return
    whose, when = (np.array(column, dtype=np.int64) for column in zip(*asked, strict=True))
    found = nesting.running_at(whose, when, thread, start, end, parent)
    for place, who, time in zip(found.tolist(), whose.tolist(), when.tolist(), strict=True):
        open_ = [
            other
            for other in range(len(thread))
            if thread[other] == who and start[other] <= time < end[other]
        ]
        assert place == (open_[-1] if open_ else -1)


def test_times_too_far_apart_for_one_number_still_nest() -> None:
    far = 1 << 58
    ranges = [(t, s, n) for t in range(3) for s, n in ((0, 9), (1, 3), (5, 2))]
    thread, start, end = ordered(ranges, far)
    assert nesting.parents(thread, start, end).tolist() == [-1, 0, 0, -1, 3, 3, -1, 6, 6]
