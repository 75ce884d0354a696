"""A trace as a viewer of timelines wants it: processes, tracks, slices, flows, counters.

Each rank is a process with a track for each thread, and each of its devices one with a track for
each stream. What runs on a thread nests; what would cross goes to an extra track, for viewers
drop it. Flows lead from a launch to its kernels and from a forward op to its backward ops.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tracelens.convert._lanes import Lanes
from tracelens.convert._timeline_args import mark_name, op_args, op_key_args, plain
from tracelens.convert._timeline_rows import Links, rows
from tracelens.convert._timeline_samples import Sample, ranges

if TYPE_CHECKING:
    from tracelens.events import Op
    from tracelens.storage.reader import TraceReader

# Viewers reserve process 0 and thread 0 for the kernel's idle task.
_FIRST_PID = 1
_FIRST_DEVICE_PID = 1 << 20
_DEVICES = 1 << 10
STEPS_TID = 1
MARKS_TID = 2
# Above any thread id of Linux (at most 2**22), so that extra lanes never collide with a thread.
_FIRST_EXTRA_TID = 1 << 23
SAMPLE = "sample"
"""Category of what stack samples tell."""
_DEVICE_KINDS = ("device_annotation",)

Args = dict[str, Any]


@dataclass(slots=True)
class Slice:
    """A range on a track, or a moment if it has no duration.

    Attributes:
        name: what is written on it.
        start_ns: since the timeline's base.
        duration_ns: ``None``: not known.
        category: its kind, for filters.
        args: details.
        leaves: flows that begin here.
        enters: flows that end here.
        scope: of a moment: ``t`` the thread's, ``p`` the process's.
    """

    name: str
    start_ns: int
    duration_ns: int | None
    category: str
    args: Args = field(default_factory=dict)
    leaves: tuple[int, ...] = ()
    enters: tuple[int, ...] = ()
    scope: str = "t"


class Sink(Protocol):
    """Writes a timeline in some format."""

    def begin(self, base_unix_ns: int) -> None:
        """The timeline begins; its times count from this Unix time."""

    def process(self, pid: int, name: str, order: int) -> None:
        """A process begins."""

    def track(self, pid: int, tid: int, name: str, order: int) -> None:
        """A track of a process begins."""

    def slice(self, pid: int, tid: int, what: Slice) -> None:
        """A slice of a track; a track's come in order of time, the outer before the inner."""

    def counter(self, pid: int, name: str, unit: str, t_ns: int, value: float) -> None:
        """A counter of a process has a value from a time on."""


def write(reader: TraceReader, sink: Sink, first_step: int | None, last_step: int | None) -> int:
    """Write a trace's timeline.

    Args:
        reader: an open trace.
        sink: where it goes.
        first_step: leave out earlier steps.
        last_step: leave out later steps.

    Returns:
        How many ops and kernels were written.
    """
    base_ns = first_time_ns(reader)
    sink.begin(reader.manifest.epoch_unix_ns + base_ns)
    written = 0
    for rank in reader.ranks():
        written += _Rank(reader, sink, rank, first_step, last_step, base_ns).write()
    return written


def first_time_ns(reader: TraceReader) -> int:
    """Return the time of a trace's first event, ns since its epoch on rank 0's clock.

    Viewers keep times as doubles of microseconds, which lose nanoseconds where they are large.
    """
    found = []
    for rank in reader.ranks():
        offset_ns = reader.clock_offset_ns(rank)
        times = [
            each["start_ns"] for each in reader.steps(rank=rank) if _is_time(each.get("start_ns"))
        ]
        for table, name in (
            ("ops", "start_ns"), ("kernels", "start_ns"), ("spans", "start_ns"),
            ("memory", "t_ns"), ("counters", "t_ns"), ("samples", "t_ns"),
        ):  # fmt: skip
            column = reader.columns(table, [name], rank=rank).column(name)
            if len(column):
                import pyarrow.compute as pc

                lowest = pc.min(column).as_py()
                times += [lowest] if lowest is not None else []
        found += [min(times) + offset_ns] if times else []
    return min(found, default=0)


class _Rank:
    """The timeline of one rank."""

    def __init__(
        self,
        reader: TraceReader,
        sink: Sink,
        rank: int,
        first_step: int | None,
        last_step: int | None,
        base_ns: int,
    ) -> None:
        self._reader, self._sink, self._rank = reader, sink, rank
        self._first, self._last = first_step, last_step
        self._steps = first_step, None if last_step is None else last_step + 1
        self._offset_ns = reader.clock_offset_ns(rank) - base_ns
        self._pid = _FIRST_PID + rank
        self._tracks = _Tracks(sink)
        self._devices: set[int] = set()

    def write(self) -> int:
        """Write it; return how many ops and kernels there were."""
        self._sink.process(self._pid, f"rank {self._rank}", self._rank * _DEVICES)
        self._sink.track(self._pid, STEPS_TID, "steps", -2)
        self._sink.track(self._pid, MARKS_TID, "findings", -1)
        links = Links(self._reader, self._rank, self._steps)
        self._write_steps()
        marks = self._marks()
        written, starts = self._write_host(links, marks)
        written += self._write_device(links)
        self._write_marks(marks, starts)
        self._write_counters()
        self._write_samples()
        return written

    def _write_steps(self) -> None:
        for step in self._reader.steps(self._first, self._last, rank=self._rank):
            if _is_time(step.get("start_ns")):
                args = plain(
                    _filled(**{key: step.get(key) for key in ("n_ops", "hits", "scalars")})
                )
                start = step["start_ns"] + self._offset_ns
                duration = step.get("duration_ns")
                duration = max(0, duration) if isinstance(duration, int) else 0
                what = Slice(f"step {step['step']}", start, duration, "step", args)
                self._tracks.flat(self._pid, STEPS_TID, "steps", what)

    def _write_host(self, links: Links, marks: list[dict[str, Any]]) -> tuple[int, dict[int, int]]:
        wanted = {int(mark["op_id"]) for mark in marks if isinstance(mark.get("op_id"), int)}
        starts: dict[int, int] = {}
        ops = 0
        for tid, what, op_id in heapq.merge(
            self._ops(links), self._spans(links), key=lambda each: _place(each[1])
        ):
            if isinstance(tid, tuple):
                label = f"process {tid[0]}, thread {tid[1]}"
                self._tracks.nested(self._pid, tid, label, what)
            else:
                self._tracks.nested(self._pid, tid, f"thread {tid}", what)
            if op_id >= 0:
                ops += 1
                if op_id in wanted:
                    starts[op_id] = what.start_ns
        return ops, starts

    def _ops(self, links: Links) -> Iterator[tuple[Any, Slice, int]]:
        for op in self._reader.iter_ops(self._first, self._last, rank=self._rank):
            yield op.tid, self._op_slice(op, links), op.op_id

    def _op_slice(self, op: Op, links: Links) -> Slice:
        duration = None if op.duration_ns is None else max(0, op.duration_ns)
        return Slice(
            op.name, op.start_ns + self._offset_ns, duration, op.phase.label,
            op_args(op) if op.inputs or op.outputs else op_key_args(op),
            links.from_op(op.op_id), links.into_op(op.op_id),
        )  # fmt: skip

    def _spans(self, links: Links) -> Iterator[tuple[Any, Slice, int]]:
        for row in self._rows(
            "spans",
            "kind name pid tid start_ns duration_ns step module file line function args span_id",
        ):
            kind, name, pid, tid, start, duration, step, module, file, line, function, args, me = (
                row
            )
            told = _parsed(args)
            told.update(_filled(step=step, module=module))
            if file:
                told["source"] = f"{file}:{line} in {function}"
            what = Slice(name, start + self._offset_ns, duration, kind, told, links.from_span(me))
            if kind in _DEVICE_KINDS or (kind == "sync" and self._on_device(pid)):
                self._on_stream(pid or 0, tid, what, "annotations")
                continue
            key: Any = tid if pid is None or pid == links.main_pid else (pid, tid)
            yield key, what, -1

    def _on_device(self, pid: int | None) -> bool:
        return pid is not None and 0 <= pid < _DEVICES

    def _write_device(self, links: Links) -> int:
        written = 0
        for row in self._rows(
            "kernels",
            "kind name device stream start_ns duration_ns step op_id corr_id size_bytes grid block"
            " collective occupancy args kern_id",
            order="start_ns",
        ):
            kind, name, device, stream, start, duration = row[:6]
            told = _parsed(row[14])
            told.update(
                _filled(
                    step=row[6], op_id=row[7], correlation=row[8], size_bytes=row[9], grid=row[10],
                    block=row[11], collective=row[12], occupancy=row[13],
                )
            )  # fmt: skip
            what = Slice(
                name, start + self._offset_ns, duration, kind, told, (), links.into_kernel(row[15])
            )
            self._on_stream(device, stream, what, "")
            written += 1
        return written

    def _on_stream(self, device: int, stream: int, what: Slice, group: str) -> None:
        pid = _FIRST_DEVICE_PID + self._rank * _DEVICES + device % _DEVICES
        if device not in self._devices:
            self._devices.add(device)
            order = self._rank * _DEVICES + 1 + device
            self._sink.process(pid, f"rank {self._rank}, device {device}", order)
        label = f"stream {stream}" + (f" {group}" if group else "")
        place = self._tracks.nested if group else self._tracks.flat
        place(pid, (group, stream), label, what)

    def _marks(self) -> list[dict[str, Any]]:
        return [
            event
            for kind in ("finding", "sink", "note")
            for event in self._reader.events(kind, rank=self._rank)
            if _within(event.get("step"), self._first, self._last)
        ]

    def _write_marks(self, marks: list[dict[str, Any]], starts: dict[int, int]) -> None:
        for event in marks:
            start = event.get("t_ns")
            op_id = event.get("op_id")
            if _is_time(start):
                at = int(start or 0) + self._offset_ns
            else:
                at = starts.get(op_id, 0) if isinstance(op_id, int) else 0
            args = plain({key: value for key, value in event.items() if key != "t"})
            category = str(event.get("t", "note"))
            what = Slice(mark_name(event), at, None, category, args, scope="p")
            self._sink.slice(self._pid, MARKS_TID, what)

    def _write_counters(self) -> None:
        held: dict[str, int] = {}
        for at, device, size, allocated, reserved in self._rows(
            "memory", "t_ns device size_bytes allocated_bytes reserved_bytes", order="t_ns"
        ):
            held[device] = held.get(device, 0) + size
            at += self._offset_ns
            value = held[device] if allocated is None else allocated
            self._sink.counter(self._pid, f"{device} allocated", "bytes", at, value)
            if reserved is not None:
                self._sink.counter(self._pid, f"{device} reserved", "bytes", at, reserved)
        if self._steps != (None, None):
            return  # a counter's rows do not tell their step
        for at, name, device, value in self._rows("counters", "t_ns name device value"):
            label = f"{name} {device}" if device else name
            self._sink.counter(self._pid, label, "", at + self._offset_ns, value)

    def _write_samples(self) -> None:
        threads: dict[str, list[Sample]] = {}
        for thread, stack, at, duration, step in self._rows(
            "samples", "thread stack t_ns duration_ns step", order="t_ns"
        ):
            if at is not None:
                frames = tuple(stack.split("\n"))
                threads.setdefault(thread, []).append(Sample(at, duration, frames, step))
        for thread, samples in threads.items():
            for each in ranges(samples):
                start, duration = each.start_ns + self._offset_ns, each.end_ns - each.start_ns
                args = _filled(step=each.step, samples=each.samples)
                what = Slice(each.frame, start, duration, SAMPLE, args)
                self._tracks.nested(self._pid, ("samples", thread), f"{thread} (samples)", what)

    def _rows(self, table: str, names: str, order: str = "") -> Iterator[tuple[Any, ...]]:
        return rows(self._reader, table, names.split(), self._rank, self._steps, order)


class _Tracks:
    """The tracks that were begun, and the lanes of each."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lanes: dict[tuple[int, Any], Lanes] = {}
        self._named: dict[tuple[int, Any, int], int] = {}
        self._next_extra = _FIRST_EXTRA_TID

    def nested(self, pid: int, key: Any, label: str, what: Slice) -> None:
        """Write a slice of a thread, whose slices may lie inside each other."""
        self._write(pid, key, label, what, lambda: Lanes())

    def flat(self, pid: int, key: Any, label: str, what: Slice) -> None:
        """Write a slice of a stream, on which none lies inside another."""
        self._write(pid, key, label, what, lambda: Lanes(nest=False))

    def _write(
        self, pid: int, key: Any, label: str, what: Slice, lanes: Callable[[], Lanes]
    ) -> None:
        lane = 0
        if what.duration_ns is not None:
            known = self._lanes.get((pid, key))
            if known is None:
                known = self._lanes[pid, key] = lanes()
            lane = known.place(what.start_ns, what.start_ns + what.duration_ns)
        self._sink.slice(pid, self._track(pid, key, label, lane), what)

    def _track(self, pid: int, key: Any, label: str, lane: int) -> int:
        track = self._named.get((pid, key, lane))
        if track is None:
            if lane == 0 and key == STEPS_TID and label == "steps":
                track = STEPS_TID
            elif lane == 0 and isinstance(key, int) and key > MARKS_TID:
                track = key
            else:
                track = self._next_extra
                self._next_extra += 1
            self._named[pid, key, lane] = track
            name = label if lane == 0 else f"{label} (overlapping {lane})"
            if track != STEPS_TID:
                self._sink.track(pid, track, name, len(self._named))
        return track


def _place(what: Slice) -> tuple[int, int]:
    return what.start_ns, -(what.duration_ns or 0)


def _is_time(value: object) -> bool:
    return isinstance(value, int) and abs(value) < 1 << 63


def _within(step: object, first: int | None, last: int | None) -> bool:
    if not isinstance(step, int):
        return True
    return (first is None or step >= first) and (last is None or step <= last)


def _filled(**values: Any) -> Args:
    """Return the values that are known."""
    return {key: value for key, value in values.items() if value is not None}


def _parsed(text: str | None) -> Args:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {"args": text}
    return found if isinstance(found, dict) else {"args": found}
