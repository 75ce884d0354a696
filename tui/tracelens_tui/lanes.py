"""What ran when inside one training step: lanes of ops by thread and phase, and of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.storage.reader import TraceReader

_OPS = """
    SELECT op_id, name, phase, tid, start_ns, duration_ns, nan_count, inf_count FROM ops
    WHERE rank = {rank} AND step = {step} AND (flags & 128) = 0 ORDER BY start_ns LIMIT 200000"""
_KERNELS = """
    SELECT op_id, name, kind, device, stream, start_ns, duration_ns FROM kernels
    WHERE rank = {rank} AND step = {step} ORDER BY start_ns LIMIT 200000"""
_SPANS = """
    SELECT coalesce(op_id, -1), name, kind, tid, start_ns, duration_ns FROM spans
    WHERE rank = {rank} AND step = {step} AND kind IN ('data', 'runtime', 'sync')
    ORDER BY start_ns LIMIT 200000"""

FILLS = {"forward": "█", "backward": "▓", "optimizer": "▒", "data": "░", "kernel": "█"}
"""One fill for each phase: they differ without colour too."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Things that ran one after the other.

    Attributes:
        label: thread and phase, or device and stream.
        kind: the phase, or ``kernel``.
        starts: ns from the step's begin, int64 of shape (n,), ascending.
        ends: likewise.
        op_ids: the op of each, -1 unknown.
        names: what each is called.
        bad: whether its output was non-finite, bool of shape (n,).
    """

    label: str
    kind: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    op_ids: NDArray[np.int64]
    names: list[str]
    bad: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StepLanes:
    """All lanes of a step.

    Attributes:
        step: which.
        lanes: threads first, then streams.
        length_ns: from the first start to the last end.
        timed: whether durations were recorded.
    """

    step: int
    lanes: list[Lane]
    length_ns: int
    timed: bool


def read(reader: TraceReader, step: int, rank: int) -> StepLanes:
    """Read what ran in a step.

    Raises:
        QueryRefused: the trace's tables cannot be queried.
    """
    where = {"rank": int(rank), "step": int(step)}
    ops = reader.sql(_OPS.format(**where))
    kernels = reader.sql(_KERNELS.format(**where))
    spans = reader.sql(_SPANS.format(**where))
    starts = [row[4] for row in (*ops, *spans)] + [row[5] for row in kernels]
    if not starts:
        return StepLanes(step, [], 0, False)
    begin = min(starts)
    groups: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    threads = list(dict.fromkeys(row[3] for row in ops))
    for op_id, name, phase, tid, start, spent, nan, inf in ops:
        label = phase if len(threads) == 1 else f"{phase} t{threads.index(tid)}"
        item = (start - begin, spent, op_id, name, bool(nan or inf))
        groups.setdefault((label, phase), []).append(item)
    for op_id, name, kind, _, start, spent in spans:
        # Lanes of ops have the phase "data" too; those are of tensors, this is the loader.
        label = "loading" if kind == "data" else kind
        groups.setdefault((label, kind), []).append((start - begin, spent, op_id, name, False))
    for op_id, name, kind, device, stream, start, spent in kernels:
        label = f"gpu{device} s{stream}" if kind == "kernel" else f"gpu{device} {kind}"
        item = (start - begin, spent, -1 if op_id is None else op_id, name, False)
        groups.setdefault((label, "kernel"), []).append(item)
    lanes = [_lane(label, kind, rows) for (label, kind), rows in groups.items()]
    length = max((int(lane.ends.max()) for lane in lanes), default=0)
    return StepLanes(step, lanes, max(length, 1), any(row[5] is not None for row in ops))


def _lane(label: str, kind: str, rows: list[tuple[Any, ...]]) -> Lane:
    starts = np.array([row[0] for row in rows], dtype=np.int64)
    spent = np.array([row[1] or 0 for row in rows], dtype=np.int64)
    return Lane(
        label,
        kind,
        starts,
        starts + spent,
        np.array([row[2] for row in rows], dtype=np.int64),
        [str(row[3]) for row in rows],
        np.array([row[4] for row in rows], dtype=np.bool_),
    )


def raster(
    lane: Lane, begin_ns: float, end_ns: float, cells: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how busy a lane was in each cell of a window, 0 to 1, and which cells were bad."""
    span = max(end_ns - begin_ns, 1.0)
    busy, bad = np.zeros(cells), np.zeros(cells, dtype=np.bool_)
    first = int(np.searchsorted(lane.ends, begin_ns)) if len(lane.ends) else 0
    last = int(np.searchsorted(lane.starts, end_ns))
    left = np.clip((lane.starts[first:last] - begin_ns) / span * cells, 0, cells)
    right = np.clip((lane.ends[first:last] - begin_ns) / span * cells, 0, cells)
    # Each thing fills part of its first and last cell and all cells between.
    one, two = np.floor(left).astype(int), np.minimum(np.floor(right).astype(int), cells - 1)
    one = np.minimum(one, cells - 1)
    same = one == two
    np.add.at(busy, one[same], (right - left)[same])
    np.add.at(busy, one[~same], (one + 1 - left)[~same])
    np.add.at(busy, two[~same], (right - two)[~same])
    whole = np.zeros(cells + 1)
    np.add.at(whole, one[~same] + 1, 1.0)
    np.add.at(whole, two[~same], -1.0)
    busy += np.cumsum(whole)[:cells]
    for start, end in zip(one[lane.bad[first:last]], two[lane.bad[first:last]], strict=True):
        bad[start : end + 1] = True
    return np.clip(busy, 0.0, 1.0), bad


def at(lane: Lane, time_ns: float, tolerance_ns: float) -> int | None:
    """Return the index of what ran at a time, or began nearest to it within a tolerance."""
    if not len(lane.starts):
        return None
    near = max(0, int(np.searchsorted(lane.starts, time_ns, side="right")) - 1)
    for candidate in (near, min(near + 1, len(lane.starts) - 1)):
        if lane.starts[candidate] - tolerance_ns <= time_ns <= lane.ends[candidate] + tolerance_ns:
            return candidate
    return None
