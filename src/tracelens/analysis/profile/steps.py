"""How each training step's time is split among what ran in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.classes import device_intervals, host_intervals
from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData, StepTable
from tracelens.analysis.profile.intervals import EMPTY, Ints, shares

PARTS = (
    "data",
    "forward",
    "backward",
    "optimizer",
    "communication",
    "copies",
    "runtime",
    "other",
    "idle",
)
"""Parts of a step's time, in the order in which they are told; ``split_steps`` defines them."""


@dataclass(frozen=True, slots=True)
class StepPart(Answer):
    """One part of a step's time.

    Attributes:
        name: one of ``PARTS``.
        duration_ns: its share of the step's time; the shares of all parts add up to the step.
        device_ns: that of it during which a device worked on it.
        host_ns: that of it during which only the host did.
        total_ns: all of its time in the step, also where other work hid it.
        hidden_ns: ``total_ns - duration_ns``: time that overlapped with more important work.
    """

    name: str
    duration_ns: int
    device_ns: int
    host_ns: int
    total_ns: int
    hidden_ns: int


@dataclass(frozen=True, slots=True)
class StepSplit(Answer):
    """The split of one step, or of all of them together.

    Attributes:
        step: its number; ``None`` for all steps together, -1 for a trace without marked steps.
        start_ns: its start.
        duration_ns: its length.
        busy_ns: time in it during which any device worked.
        parts: one for each of ``PARTS``.
    """

    step: int | None
    start_ns: int
    duration_ns: int
    busy_ns: int
    parts: tuple[StepPart, ...]

    def part(self, name: str) -> StepPart:
        """Return one part."""
        return self.parts[PARTS.index(name)]

    def share(self, name: str) -> float:
        """Return a part's share of the step, 0 to 1."""
        return self.part(name).duration_ns / self.duration_ns if self.duration_ns else 0.0


@dataclass(frozen=True, slots=True)
class StepsAnswer(Answer):
    """The split of every step.

    Attributes:
        whole: all steps together.
        steps: each of them.
        marked: whether the program marked steps; if not, one step stands for the whole trace.
        has_device: whether any device work was recorded.
    """

    whole: StepSplit
    steps: tuple[StepSplit, ...]
    marked: bool
    has_device: bool


def split_steps(data: ProfileData, *, windows: str = "host") -> StepsAnswer:
    """Split the time of each step among its parts, so that they add up to it exactly.

    At each moment the first of these that holds is what the time is counted as. The order is that
    of torch_tb_profiler's step-time breakdown, with its classes split by phase.

    - A kernel runs: ``forward``, ``backward``, ``optimizer`` or ``other``, by the phase of the op
      that launched it.
    - A collective runs: ``communication``, so that only its exposed part is counted.
    - A copy or fill runs: ``copies``.
    - The host is in a call of the device runtime: ``runtime``.
    - The host waits for data: ``data``; it communicates, without a device: ``communication``.
    - The host is in an op of the optimizer, backward or forward pass; in other code: ``other``.
    - Nothing was recorded: ``idle``.

    Args:
        data: the profile.
        windows: ``"host"``: a step is what the program marked. ``"device"``: as torch_tb_profiler
            aligns it, a step starts when the one before has ended, and ends when the last kernel
            that it launched has.
    """
    steps = data.steps if windows == "host" else device_windows(data)
    device, host = device_intervals(data), host_intervals(data)
    kernels = ("forward", "backward", "optimizer", "other")
    order = [
        *((name, "device", device[name]) for name in (*kernels, "communication", "copies")),
        *((name, "host", host[name]) for name in _HOST_ORDER),
    ]
    low, high = steps.start_ns, steps.end_ns
    rows = shares([part for _, _, part in order], low, high)
    zero = np.zeros_like(low)
    own = {(name, side): zero for name in PARTS for side in ("device", "host")}
    for (name, side, _), row in zip(order, rows[:-1], strict=True):
        own[name, side] = own[name, side] + row
    own["idle", "host"] = rows[-1]
    total = {
        name: (device.get(name, EMPTY) | host.get(name, EMPTY)).within(low, high)
        for name in PARTS
        if name != "idle"
    }
    total["idle"] = rows[-1]
    busy = data.busy().within(low, high)
    each = tuple(_split(steps, own, total, busy, at) for at in range(len(steps)))
    return StepsAnswer(_together(each), each, steps.marked, bool(len(data.device)))


_HOST_ORDER = ("runtime", "data", "communication", "optimizer", "backward", "forward", "other")


OUTLIER = 2.0
"""A step longer than so many times the median is not a typical one (warm-up, a checkpoint)."""


def typical(answer: StepsAnswer) -> StepsAnswer:
    """Return the split of the steps of usual length alone: what most of the run is like.

    Steps longer than ``OUTLIER`` times the median are left out; below three steps none is.
    """
    if not answer.marked or len(answer.steps) < 3:
        return answer
    usual = np.median([step.duration_ns for step in answer.steps])
    kept = tuple(step for step in answer.steps if step.duration_ns <= OUTLIER * usual)
    return replace(answer, whole=_together(kept), steps=kept)


def device_windows(data: ProfileData) -> StepTable:
    """Return the steps with the device work that they launched, as torch_tb_profiler aligns them.

    A step starts when the one before has ended and ends when the host's mark ends or the last
    kernel that it launched does, whichever is later.
    """
    steps = data.steps
    at = _step_rows(steps, data.kernels.ints("step"))
    ends = steps.end_ns.copy()
    kernel_ends = data.kernels.ints("start_ns") + durations(data.kernels)
    np.maximum.at(ends, at[at >= 0], kernel_ends[at >= 0])
    ends = np.maximum.accumulate(ends)
    starts = np.maximum(steps.start_ns, np.append(steps.start_ns[0], ends[:-1]))
    return StepTable(steps.step, starts, ends, steps.marked)


def _step_rows(steps: StepTable, numbers: Ints) -> Ints:
    order = np.argsort(steps.step, kind="stable")
    ordered = steps.step[order]
    at = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
    return np.where(ordered[at] == numbers, order[at], -1)


def _split(
    steps: StepTable,
    own: dict[tuple[str, str], Ints],
    total: dict[str, Ints],
    busy: Ints,
    at: int,
) -> StepSplit:
    parts = []
    for name in PARTS:
        device, host = int(own[name, "device"][at]), int(own[name, "host"][at])
        all_of_it = max(int(total[name][at]), device + host)
        parts.append(
            StepPart(name, device + host, device, host, all_of_it, all_of_it - device - host)
        )
    return StepSplit(
        int(steps.step[at]),
        int(steps.start_ns[at]),
        int(steps.duration_ns[at]),
        int(busy[at]),
        tuple(parts),
    )


def _together(each: tuple[StepSplit, ...]) -> StepSplit:
    parts = tuple(
        StepPart(name, *(sum(getattr(split.part(name), field) for split in each)
                         for field in ("duration_ns", "device_ns", "host_ns", "total_ns",
                                       "hidden_ns")))
        for name in PARTS
    )  # fmt: skip
    return StepSplit(
        None,
        each[0].start_ns,
        sum(split.duration_ns for split in each),
        sum(split.busy_ns for split in each),
        parts,
    )
