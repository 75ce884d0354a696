"""Whether the host launches fast enough, and where it stops to wait for the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.classes import host_class_masks
from tracelens.analysis.profile.columns import durations, rows_of
from tracelens.analysis.profile.data import DEVICE_KINDS, ProfileData
from tracelens.analysis.profile.intervals import Ints
from tracelens.analysis.profile.launch_links import is_sync, launch_rows, stream_order

SHORT_KERNEL_NS = 10_000
"""AMD's TraceLens' threshold of a short kernel: about what one launch costs the host."""

LONG_DELAY_NS = 100_000
"""HTA's ``launch_delay_cutoff``: beyond it the work waited in the queue."""

_CURVE_POINTS = 500


@dataclass(frozen=True, slots=True)
class LaunchAnswer(Answer):
    """Launches of a rank.

    Attributes:
        launches: calls that launched device work.
        linked: pieces of device work whose launch is known.
        unlinked: those of which it is not.
        host_ns: time that the launching calls took.
        mean_delay_ns: mean launch delay; see ``launches``.
        median_delay_ns: its median.
        long_delays: pieces of work with a delay above ``LONG_DELAY_NS``.
        shorter_than_launch: pieces of work that took less time than the call that launched them.
        short: kernels shorter than ``SHORT_KERNEL_NS``.
        short_share: of all kernels.
        short_ns: their device time.
        starved: pieces of work that were launched only after their stream had run dry.
        starved_share: of the linked ones that follow another on their stream.
        queue: work in the queue over time: ``t_ns`` and the largest ``depth`` near each.
        max_queue: most pieces of work in the queue at once.
        mean_queue: mean over time from the first launch to the last start.
    """

    launches: int
    linked: int
    unlinked: int
    host_ns: int
    mean_delay_ns: float | None
    median_delay_ns: float | None
    long_delays: int
    shorter_than_launch: int
    short: int
    short_share: float
    short_ns: int
    starved: int
    starved_share: float
    queue: dict[str, list[int]]
    max_queue: int
    mean_queue: float

    @property
    def launch_bound(self) -> bool:
        """Whether most work found an empty stream: the device waits for the host's launches."""
        return self.starved_share > 0.5


@dataclass(frozen=True, slots=True)
class SyncGroup(Answer):
    """Waits of the host for the device that one place in the program makes.

    Attributes:
        call: the waiting call (``cudaStreamSynchronize``).
        op: the op that made it, if known.
        file: file of the user's line, if known.
        line: 1-based line.
        count: waits.
        total_ns: time the host spent in them.
        drained_ns: time from the end of each wait until a device had work again, less what of it
            the host waited for data: what the wait cost because the queue had run empty.
    """

    call: str
    op: str
    file: str
    line: int
    count: int
    total_ns: int
    drained_ns: int


def launches(data: ProfileData) -> LaunchAnswer | None:
    """Tell how work was launched; ``None`` if no device work was recorded.

    The launch delay is the time from the end of the launching call to the start of the work, and 0
    where it started sooner (as HTA's ``get_cuda_kernel_launch_stats``). The queue holds what was
    launched and has not started (as HTA's ``get_queue_length_time_series``, over all streams).
    """
    kernels = data.kernels
    if not len(kernels):
        return None
    rows = launch_rows(data, kernels)
    linked = rows >= 0
    start, length = kernels.ints("start_ns"), durations(kernels)
    call_start = np.append(data.spans.ints("start_ns"), 0)[rows]
    call_length = np.append(durations(data.spans), 0)[rows]
    delay = np.maximum(start - call_start - call_length, 0)[linked]
    short = (data.device_class(kernels) <= DEVICE_KINDS.index("comm")) & (length < SHORT_KERNEL_NS)
    n_kernels = int((data.device_class(kernels) <= DEVICE_KINDS.index("comm")).sum())
    starved, following = _starved(data, linked, call_start)
    calls = np.unique(rows[linked])
    queue, deepest, mean = _queue(call_start[linked], start[linked])
    return LaunchAnswer(
        launches=len(calls),
        linked=int(linked.sum()),
        unlinked=int((~linked).sum()),
        host_ns=int(durations(data.spans)[calls].sum()),
        mean_delay_ns=float(delay.mean()) if len(delay) else None,
        median_delay_ns=float(np.median(delay)) if len(delay) else None,
        long_delays=int((delay > LONG_DELAY_NS).sum()),
        shorter_than_launch=int((length < call_length)[linked].sum()),
        short=int(short.sum()),
        short_share=float(short.sum() / n_kernels) if n_kernels else 0.0,
        short_ns=int(length[short].sum()),
        starved=starved,
        starved_share=starved / following if following else 0.0,
        queue=queue,
        max_queue=deepest,
        mean_queue=mean,
    )


def _starved(data: ProfileData, linked: NDArray[np.bool_], call_start: Ints) -> tuple[int, int]:
    order, follows = stream_order(data.kernels)
    start, length = data.kernels.ints("start_ns")[order], durations(data.kernels)[order]
    previous_end = np.append(0, (start + length)[:-1])
    known = follows & linked[order]
    return int((known & (call_start[order] > previous_end)).sum()), int(known.sum())


def _queue(launched: Ints, started: Ints) -> tuple[dict[str, list[int]], int, float]:
    """Return the queue's depth over time at most ``_CURVE_POINTS`` times, its maximum and mean."""
    if not len(launched):
        return {"t_ns": [], "depth": []}, 0, 0.0
    times = np.concatenate([launched, started])
    change = np.repeat(np.array([1, -1]), len(launched))
    order = np.argsort(times, kind="stable")
    times, depth = times[order], np.maximum(np.cumsum(change[order]), 0)
    span = int(times[-1] - times[0])
    mean = float((depth[:-1] * np.diff(times)).sum() / span) if span else 0.0
    edges = np.unique(np.linspace(0, len(times), _CURVE_POINTS + 1).astype(np.int64)[:-1])
    peaks = np.maximum.reduceat(depth, edges)
    return {"t_ns": times[edges].tolist(), "depth": peaks.tolist()}, int(depth.max()), mean


def sync_stalls(data: ProfileData, *, top: int | None = None) -> list[SyncGroup]:
    """Rank the places where the host waits for the device, by what it cost the device, then host.

    A wait is a synchronising call or a copy that is not asynchronous. The profiler's own waits
    (in no op and after the last kernel) are among them.
    """
    rows = np.flatnonzero(is_sync(data))
    if not len(rows):
        return []
    spans, ops = data.spans, data.ops
    op = rows_of(ops.ints("op_id"), spans.ints("op_id")[rows])
    op_name, file = np.append(ops.codes("name"), -1)[op], np.append(ops.codes("file"), -1)[op]
    line = np.append(ops.ints("line"), -1)[op]
    length = durations(spans)[rows]
    drained = _drained(data, (spans.ints("start_ns") + durations(spans))[rows])
    keys = np.stack([spans.codes("name")[rows], op_name, file, line])
    _, first, group = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    count = np.bincount(group)
    total = np.bincount(group, weights=length).astype(np.int64)
    lost = np.bincount(group, weights=drained).astype(np.int64)
    names, op_names = spans.texts("name"), [*ops.texts("name"), ""]
    files = [*ops.texts("file"), ""]
    return [
        SyncGroup(
            names[int(keys[0, first[at]])],
            op_names[int(keys[1, first[at]])],
            files[int(keys[2, first[at]])],
            int(keys[3, first[at]]),
            int(count[at]),
            int(total[at]),
            int(lost[at]),
        )
        for at in np.lexsort((-total, -lost))[:top]
    ]


def _drained(data: ProfileData, ends: Ints) -> Ints:
    """Return how long after each moment no device had work for no lack of data; 0 where one had."""
    busy = data.busy()
    if not len(busy):
        return np.zeros(len(ends), dtype=np.int64)
    at = np.searchsorted(busy.ends, ends, side="right")
    following = np.append(busy.starts, np.iinfo(np.int64).max)[at]
    # After the last work nothing was waited for.
    until = np.where(at < len(busy), np.maximum(following, ends), ends)
    loading = data.span_intervals(host_class_masks(data)["data"])
    return until - ends - loading.within(ends, until)
