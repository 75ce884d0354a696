"""The critical path of the trace, or of the selected steps: what would have to be faster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.classes import host_intervals
from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import EMPTY, Intervals, Ints, shares, union
from tracelens.analysis.profile.launch_links import is_sync, launch_rows, stream_order


@dataclass(frozen=True, slots=True)
class PathPart(Answer):
    """Something on the critical path.

    Attributes:
        kind: ``kernel`` (its name), ``host`` (what the host did: a part as ``split_steps`` names
            them, or ``unrecorded``), ``op`` (own time of ops within the host's parts) or ``delay``.
        name: of what.
        count: pieces on the path; 0 where they were not counted.
        duration_ns: its time on the path.
    """

    kind: str
    name: str
    count: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class CriticalAnswer(Answer):
    """The critical path.

    Attributes:
        start_ns: where it begins.
        duration_ns: its length: ``device_ns + host_ns + delay_ns``.
        device_ns: time on it in device work.
        host_ns: time on it on the host.
        delay_ns: time on it between a launch, or the work before, and the start of work.
        bound_by: ``device`` or ``host``: which takes more of it.
        kernels: device work on it by name, the longest first.
        host: host time on it by part of the step.
        ops: own time of ops within the host's time on it, the longest first.
        segments: ``start_ns``, ``end_ns`` and ``what`` (``HOST``, ``DELAY`` or the row of device
            work) of its pieces, in order of time; int64 of shape (pieces,).
    """

    start_ns: int
    duration_ns: int
    device_ns: int
    host_ns: int
    delay_ns: int
    bound_by: str
    kernels: tuple[PathPart, ...]
    host: tuple[PathPart, ...]
    ops: tuple[PathPart, ...]
    segments: dict[str, Ints]


@dataclass(frozen=True)
class _Work:
    """Device work in the order of its streams; int64 arrays of shape (n,).

    ``before`` is the position of the work before it on its stream, -1 for none; ``launched`` when
    its launching call began, -1 if unknown.
    """

    row: Ints
    start: Ints
    end: Ints
    before: Ints
    launched: Ints


def critical_path(data: ProfileData, *, top: int = 20) -> CriticalAnswer | None:
    """Follow what each thing waited for, back from the end; ``None`` if nothing was recorded.

    As Holistic Trace Analysis' critical path, walked backwards over the recorded times: device work
    waited for the work before it on its stream, or, if it was launched after that had ended, for
    the host's launch; the host waited, in a call that waits for the device, for the last work that
    ended before the call returned (if any ended within the call). The threads of the host are taken
    as one line, since they take turns in a step (forward on one, backward on another). Waits
    between streams are seen as delay. Select steps to see the path of one step.
    """
    low, high = _window(data)
    if high <= low:
        return None
    work = _work(data, low, high)
    starts, ends, what = _walk(data, work, low, high)
    device, host, delay = what >= 0, what == HOST, what == DELAY
    lengths = ends - starts
    device_ns, host_ns = int(lengths[device].sum()), int(lengths[host].sum())
    on_host = union(starts[host], ends[host])
    return CriticalAnswer(
        low,
        high - low,
        device_ns,
        host_ns,
        int(lengths[delay].sum()),
        "device" if device_ns >= host_ns else "host",
        _kernels(data, what[device], lengths[device], top),
        _host_parts(data, on_host),
        _ops(data, on_host, top),
        {"start_ns": starts, "end_ns": ends, "what": what},
    )


HOST, DELAY = -1, -2
"""What a segment is, where it is no device work."""


def _window(data: ProfileData) -> tuple[int, int]:
    """From the first selected step's start to the end of the last, or of what they launched."""
    if not data.steps.marked:
        return data.window
    low, high = int(data.steps.start_ns.min()), int(data.steps.end_ns.max())
    if len(data.kernels) and data.selected:
        high = max(high, int((data.kernels.ints("start_ns") + durations(data.kernels)).max()))
    return low, high


def _work(data: ProfileData, low: int, high: int) -> _Work:
    columns = data.device
    order, follows = stream_order(columns)
    start = columns.ints("start_ns")[order]
    end = start + durations(columns)[order]
    launch = launch_rows(data, columns)[order]
    launched = np.where(launch >= 0, np.append(data.spans.ints("start_ns"), 0)[launch], -1)
    before = np.where(follows, np.arange(len(order)) - 1, -1)
    inside = (end > low) & (start < high)
    place = np.append(np.where(inside, np.cumsum(inside) - 1, -1), -1)
    keep = np.flatnonzero(inside)
    return _Work(
        order[keep],
        np.maximum(start, low)[keep],
        np.minimum(end, high)[keep],
        place[before[keep]],
        launched[keep],
    )


def _walk(data: ProfileData, work: _Work, low: int, high: int) -> tuple[Ints, Ints, Ints]:
    """Return the pieces of the path in order of time: start, end, and what each is."""
    by_end = np.argsort(work.end, kind="stable")
    sync_end, sync_last = _syncs(data, work.end[by_end], by_end, low, high)
    first = _run_starts(work, low)
    pieces: list[tuple[Ints, Ints, Ints]] = []
    now = high
    at = int(by_end[-1]) if len(by_end) else -1
    # The path ends with the last work, unless the host went on for longer.
    at = at if at >= 0 and work.end[at] >= now else -1
    while now > low:
        if at >= 0:
            begin = int(first[at])
            now = _add_run(work, begin, at, now, pieces)
            call = int(work.launched[begin])
            reached = min(max(call, low), now) if call >= 0 else now
            _add(pieces, reached, now, DELAY)
            now, at = reached, -1
            continue
        sync = int(np.searchsorted(sync_end, now, side="right")) - 1
        begin = max(int(sync_end[sync]), low) if sync >= 0 else low
        _add(pieces, begin, now, HOST)
        now = begin
        if sync < 0:
            break
        at = int(sync_last[sync])
        ended = min(int(work.end[at]), now)
        _add(pieces, ended, now, DELAY)  # what remains of the call after the work had ended
        now = ended
        sync_end, sync_last = sync_end[:sync], sync_last[:sync]
    if not pieces:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, nothing
    start, end, what = (np.concatenate(column) for column in zip(*pieces[::-1], strict=True))
    return start, end, what


def _run_starts(work: _Work, low: int) -> Ints:
    """Return, for each piece of work, the earlier one of its stream from which on all were queued.

    Such a run begins with work that was launched only after the work before it had ended.
    """
    ready = np.where(work.before >= 0, np.append(work.end, low)[work.before], low)
    begins = (work.before < 0) | (work.launched > ready)
    return np.asarray(np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0)))


def _add_run(
    work: _Work, begin: int, last: int, now: int, pieces: list[tuple[Ints, Ints, Ints]]
) -> int:
    """Add work of one stream, one after the other, and the delays between; return its start."""
    start = np.minimum(work.start[begin : last + 1], now)
    end = np.minimum(work.end[begin : last + 1], np.append(start[1:], now))
    edges = np.stack([start, end], axis=1).reshape(-1)
    what = np.stack([work.row[begin : last + 1], np.full(len(start), DELAY)], axis=1).reshape(-1)
    until = np.append(edges[1:], now)
    sound = until > edges
    pieces.append((edges[sound], until[sound], what[sound]))
    return int(start[0])


def _add(pieces: list[tuple[Ints, Ints, Ints]], start: int, end: int, what: int) -> None:
    if end > start:
        pieces.append((np.array([start]), np.array([end]), np.array([what])))


def _syncs(data: ProfileData, ends: Ints, by_end: Ints, low: int, high: int) -> tuple[Ints, Ints]:
    """Return when waits of the host that really waited ended, and the work that each waited for."""
    rows = np.flatnonzero(is_sync(data))
    start = data.spans.ints("start_ns")[rows]
    end = start + durations(data.spans)[rows]
    inside = (end > low) & (end <= high)
    order = np.flatnonzero(inside)[np.argsort(end[inside], kind="stable")]
    start, end = start[order], end[order]
    at = np.searchsorted(ends, end, side="right") - 1
    waited = (at >= 0) & (ends[np.maximum(at, 0)] > start) if len(ends) else np.zeros(len(at), bool)
    return end[waited], by_end[at[waited]]


def _kernels(data: ProfileData, rows: Ints, lengths: Ints, top: int) -> tuple[PathPart, ...]:
    texts, codes = data.device.texts("name"), data.device.codes("name")[rows]
    total = np.bincount(codes, weights=lengths, minlength=len(texts)).astype(np.int64)
    count = np.bincount(codes, minlength=len(texts))
    order = np.argsort(-total, kind="stable")[:top]
    return tuple(
        PathPart("kernel", texts[at], int(count[at]), int(total[at])) for at in order if count[at]
    )


def _host_parts(data: ProfileData, on_host: Intervals) -> tuple[PathPart, ...]:
    if not len(on_host):
        return ()
    found = host_intervals(data)
    low, high = [int(on_host.starts[0])], [int(on_host.ends[-1])]
    names = ("runtime", "data", "communication", "optimizer", "backward", "forward", "other")
    rows = shares([found.get(name, EMPTY) & on_host for name in names] + [on_host], low, high)
    parts = [
        PathPart("host", name, 0, int(length))
        for name, length in zip((*names, "unrecorded"), rows[:, 0], strict=False)
        if length
    ]
    return tuple(sorted(parts, key=lambda part: -part.duration_ns))


def _ops(data: ProfileData, on_host: Intervals, top: int) -> tuple[PathPart, ...]:
    ops = data.ops
    if not len(ops) or not len(on_host):
        return ()
    starts = ops.ints("start_ns")
    inside = on_host.within(starts, starts + durations(ops))
    own, parent = inside.copy(), data.op_parent
    inner = parent >= 0
    np.subtract.at(own, parent[inner], inside[inner])
    texts, codes = ops.texts("name"), ops.codes("name")
    total = np.bincount(codes, weights=np.maximum(own, 0), minlength=len(texts)).astype(np.int64)
    count = np.bincount(codes[inside > 0], minlength=len(texts))
    order = np.argsort(-total, kind="stable")[:top]
    return tuple(
        PathPart("op", texts[at], int(count[at]), int(total[at])) for at in order if total[at]
    )
