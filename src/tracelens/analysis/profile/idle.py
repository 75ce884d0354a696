"""How busy the devices were in each step, and what they waited for while they were not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.classes import host_class_masks
from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import EMPTY, Intervals, Ints, shares, union
from tracelens.analysis.profile.launch_links import is_sync, launch_rows, stream_order

CONSECUTIVE_DELAY_NS = 30_000
"""HTA's default: a gap shorter than this between queued kernels is the device's own delay. HTA says
30 ns, and compares 30 with microseconds."""

REASONS = ("data", "sync", "runtime", "ops", "other_host", "kernel_wait", "unknown")
"""Why a device was idle; ``idle`` defines them."""


@dataclass(frozen=True, slots=True)
class StepIdle(Answer):
    """How idle the devices were in one step.

    Attributes:
        step: its number; -1 for a trace without marked steps.
        duration_ns: its length.
        busy_ns: time in it during which any device worked.
        idle_ns: the rest.
        reasons: idle time by reason, ns; they add up to ``idle_ns``.
    """

    step: int
    duration_ns: int
    busy_ns: int
    idle_ns: int
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class StreamIdle(Answer):
    """Gaps between the work of one stream, as Holistic Trace Analysis sorts them.

    Attributes:
        device: device index.
        stream: the stream.
        host_wait_ns: gaps whose next kernel was launched only after the last one had ended.
        kernel_wait_ns: other gaps shorter than ``CONSECUTIVE_DELAY_NS``.
        other_ns: what remains: waits for other streams, or a launch that was not recorded.
    """

    device: int
    stream: int
    host_wait_ns: int
    kernel_wait_ns: int
    other_ns: int


@dataclass(frozen=True, slots=True)
class IdleAnswer(Answer):
    """Why the devices of a rank were idle.

    Attributes:
        steps: by step.
        streams: by stream, over all the trace.
        busy_ns: busy time of all steps.
        idle_ns: idle time of all steps.
        reasons: idle time of all steps by reason, ns.
        devices: busy time in all steps of each device, ns.
    """

    steps: tuple[StepIdle, ...]
    streams: tuple[StreamIdle, ...]
    busy_ns: int
    idle_ns: int
    reasons: dict[str, int]
    devices: dict[int, int]


def idle(data: ProfileData) -> IdleAnswer | None:
    """Tell why no device worked, for each step; ``None`` if no device work was recorded.

    A moment is idle if nothing runs on any stream of any device. The work that ends an idle gap
    tells what was waited for: until the host began to launch it, the device waited for the host
    (HTA's host wait), and from then on for the launch to arrive or for other streams
    (``kernel_wait``). The host's part is split by what the host did: ``data`` (it waited for a
    batch), ``sync`` (it was in a call that waits for the device), ``runtime`` (other calls of the
    device runtime: launches, allocations), ``ops`` (framework ops), ``other_host`` (Python and
    what else was recorded, or nothing). After the last work of the trace the host launched nothing
    more. Gaps that end with work of which no launch was recorded are ``unknown``, except for the
    time in which the host waited for data.
    """
    if not len(data.device):
        return None
    steps = data.steps
    low, high = steps.start_ns, steps.end_ns
    busy = data.busy()
    waits, unknown = _host_waits(data, busy, int(low.min()), int(high.max()))
    masks = host_class_masks(data)
    sync = data.span_intervals(is_sync(data))
    runtime = data.span_intervals(masks["runtime"])
    loading = data.span_intervals(masks["data"])
    roots = data.op_parent < 0
    starts = data.ops.ints("start_ns")[roots]
    ops = union(starts, starts + durations(data.ops)[roots])
    host = {"data": waits & loading, "sync": waits & sync, "runtime": waits & runtime,
            "ops": waits & ops, "other_host": waits}  # fmt: skip
    loaded_unknown = unknown & loading
    order = [busy, *host.values(), loaded_unknown, unknown]
    rows = shares(order, low, high)
    reasons = dict(zip(host, rows[1 : 1 + len(host)], strict=True))
    reasons["data"] = reasons["data"] + rows[-3]
    reasons["unknown"] = rows[-2]
    reasons["kernel_wait"] = rows[-1]
    each = tuple(
        StepIdle(
            int(steps.step[at]),
            int(steps.duration_ns[at]),
            int(rows[0][at]),
            int(steps.duration_ns[at] - rows[0][at]),
            {name: int(reasons[name][at]) for name in REASONS},
        )
        for at in range(len(steps))
    )
    return IdleAnswer(
        each,
        stream_idle(data),
        sum(step.busy_ns for step in each),
        sum(step.idle_ns for step in each),
        {name: int(reasons[name].sum()) for name in REASONS},
        _by_device(data),
    )


def _by_device(data: ProfileData) -> dict[int, int]:
    columns, steps = data.device, data.steps
    device, start = columns.ints("device"), columns.ints("start_ns")
    end = start + durations(columns)
    found = {}
    for index in np.unique(device).tolist():
        busy = union(start[device == index], end[device == index])
        found[index] = int(busy.within(steps.start_ns, steps.end_ns).sum())
    return found


def _host_waits(
    data: ProfileData, busy: Intervals, low: int, high: int
) -> tuple[Intervals, Intervals]:
    """Return when the devices waited for the host, and gaps of which that is not known."""
    gaps = busy.gaps(low, high)
    if not len(gaps):
        return EMPTY, EMPTY
    starts = data.device.ints("start_ns")
    order = np.argsort(starts, kind="stable")
    # The work that ends a gap starts exactly where the gap ends.
    at = np.searchsorted(starts[order], gaps.ends)
    ends_trace = at >= len(order)
    first = order[np.minimum(at, len(order) - 1)]
    launch = launch_rows(data, data.device)[first]
    known = (launch >= 0) | ends_trace
    launched = np.append(data.spans.ints("start_ns"), 0)[launch]
    launched = np.where(ends_trace, high, launched)
    until = np.where(known, np.clip(launched, gaps.starts, gaps.ends), gaps.starts)
    return union(gaps.starts, until), union(gaps.starts[~known], gaps.ends[~known])


def stream_idle(
    data: ProfileData, consecutive_delay_ns: int = CONSECUTIVE_DELAY_NS
) -> tuple[StreamIdle, ...]:
    """Sort the gaps of every stream as HTA's ``get_idle_time_breakdown`` does.

    A gap runs from the end of one piece of work to the start of the next of the stream; work that
    overlaps has none between it (HTA counts a negative one). Streams with one piece have no gap.
    """
    columns = data.device
    order, follows = stream_order(columns)
    if not follows.any():
        return ()
    start = columns.ints("start_ns")[order]
    end = start + durations(columns)[order]
    launch = launch_rows(data, columns)[order]
    launched = np.where(launch >= 0, np.append(data.spans.ints("start_ns"), 0)[launch], -1)
    previous_end = np.append(0, end[:-1])
    gap = np.where(follows, np.maximum(start - previous_end, 0), 0)
    host = follows & (launch >= 0) & (launched > previous_end)
    kernel = follows & ~host & (gap < consecutive_delay_ns)
    first = np.flatnonzero(~follows)

    def total(mask: np.ndarray) -> Ints:
        return np.add.reduceat(np.where(mask, gap, 0), first)

    sums = total(host), total(kernel), total(follows & ~host & ~kernel)
    heads = order[first]
    device, stream = columns.ints("device")[heads], columns.ints("stream")[heads]
    lengths = np.diff(np.append(first, len(order)))
    return tuple(
        StreamIdle(int(device[i]), int(stream[i]), *(int(part[i]) for part in sums))
        for i in range(len(first))
        if lengths[i] > 1
    )
