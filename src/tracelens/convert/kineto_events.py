"""Sorts the events of a profile by what they are, into columns.

Times are whole nanoseconds of the file's own clock. Nothing is linked here: ``profile_rows`` does.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw

from tracelens.convert.kineto_args import DeviceArgs, LaunchArgs, MemoryArgs, OpArgs
from tracelens.convert.kineto_columns import Codes, Distinct, Ints, Table, none_as, thread_number
from tracelens.convert.kineto_decode import BROKEN, Events, ExactEvent, decode_args
from tracelens.convert.kineto_kinds import FORWARD_BACKWARD, LAUNCHES, MEMORY, Kind, kind_of
from tracelens.convert.kineto_times import UNKNOWN, from_floats, from_texts
from tracelens.convert.problems import Problems

_TIMES = {"name": "i4", "thread": "i4", "start_ns": "i8", "duration_ns": "i8"}
_MAX_ARGS_BYTES = 4 << 10
"""Arguments of events that are not known are kept as text up to this size."""

_MAX_PROCESSES = 10_000
"""Names of more processes are not kept."""

_SKIPPED_INSTANTS = ("Iteration Start", "Record Window End")
_NO_RAW = b""


class Collected:
    """The events of one file.

    Args:
        problems: told what could not be read.

    Attributes:
        names: names of events.
        threads: ``(pid, tid)`` as the file says them.
        json: JSON texts of shapes, types, grids, arguments.
        stacks: call stacks as text.
        modules: module hierarchies as text.
        facts: what else is told of device work, as tuples (see ``DEVICE_FACTS``).
        collectives: ``(name, dtype, group, group size, sent, received)``.
        metadata: how many events only name processes and threads.
        process_names: name of each process that has one.
        count: how many events there were.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.names, self.threads, self.json = Distinct(), Distinct(), Distinct()
        self.stacks, self.modules, self.facts = Distinct(), Distinct(), Distinct()
        self.collectives, self.categories = Distinct(), Distinct()
        self.python = Table(_TIMES)
        self.annotations = Table(_TIMES)
        self.ops = Table(
            {
                **_TIMES,
                "external": "i8",
                "sequence": "i8",
                "forward_thread": "i4",
                **dict.fromkeys(
                    ("shapes", "types", "values", "stack", "modules", "collective"), "i4"
                ),
            }
        )
        self.runtime = Table({**_TIMES, "corr": "i8"})
        self.others = Table({**_TIMES, "kind": "u1", "args": "i4"})
        self.device = Table(
            {
                **_TIMES,
                "kind": "u1",
                "device": "i4",
                "stream": "i4",
                "corr": "i8",
                "external": "i8",
                "size_bytes": "i8",
                "occupancy": "f4",
                **dict.fromkeys(("grid", "block", "facts", "collective"), "i4"),
            }
        )
        self.memory = Table(
            {
                "thread": "i4",
                "t_ns": "i8",
                **dict.fromkeys(("device_type", "device"), "i4"),
                **dict.fromkeys(("size_bytes", "address", "allocated", "reserved"), "i8"),
            }
        )
        self.counters = Table({"name": "i4", "t_ns": "i8", "thread": "i4", "value": "f8"})
        self.arrows = Table({"id": "i8", "thread": "i4", "t_ns": "i8", "role": "u1"})
        self.ends = Table(
            {
                "t_ns": "i8",
                "begins": "u1",
                **dict.fromkeys(("thread", "name", "category", "args"), "i4"),
            }
        )
        self.metadata = 0
        self.process_names: dict[int | str, str] = {}
        self.count = 0
        self._kinds: dict[str, Kind] = {}
        self._needs_arrows = False

    def add(self, events: Events) -> None:
        """Add events in the file's order."""
        groups: dict[tuple[str, str | None], list[Any]] = {}
        for event in events:
            key = (event.ph, event.cat)
            try:
                groups[key].append(event)
            except KeyError:
                groups[key] = [event]
        self.count += len(events)
        arrows = [key for key in groups if key[0] in ("s", "f")]
        for (phase, category), group in groups.items():
            if phase == "X":
                self._complete(category, group)
            elif phase in ("s", "f"):
                continue
            elif phase in ("i", "I", "R"):
                self._instants(group)
            elif phase in ("B", "E"):
                self._ends(category, group, phase == "B")
            elif phase == "C":
                self._counters(group)
            elif phase == "M":
                self._metadata(group)
            elif phase:
                self.problems.add(f"events of the kind {phase!r} are not imported", len(group))
            else:
                self.problems.add("events that say no kind are left out", len(group))
        for key in arrows:
            self._arrows(key[1], groups[key], key[0] == "f")

    def _metadata(self, events: list[Any]) -> None:
        """Take the names of processes: Horovod's are the tensors that they reduce."""
        self.metadata += len(events)
        for event in events:
            if len(self.process_names) >= _MAX_PROCESSES:
                return
            if event.name == "process_name":
                with contextlib.suppress(*BROKEN):
                    told = msgspec.json.decode(event.args, type=dict[str, Any]).get("name")
                    if isinstance(told, str) and told:
                        self.process_names[thread_number(event.pid)] = told

    def _complete(self, category: str | None, events: list[Any]) -> None:
        kind = self._kinds.get(category or "")
        if kind is None:
            kind = kind_of(category, bytes(events[0].args))
            self._kinds[category or ""] = kind
        self.add_ranges(kind, events)

    def add_ranges(self, kind: Kind, events: list[Any]) -> None:
        """Add events of one kind that have a start and a duration."""
        if kind is Kind.SKIPPED:
            return
        events, start = self._timed(events)
        rows = len(events)
        if not rows:
            return
        length = np.array([event.dur for event in events], dtype=np.float64)
        unknown = np.isnan(length)
        if unknown.any():
            self.problems.add("events without a duration count as 0 ns", int(unknown.sum()))
        duration = from_floats(np.where(unknown, 0.0, length))
        columns: dict[str, Any] = {
            "name": self.names.codes(none_as([event.name for event in events], "")),
            "thread": self._threads(events),
            "start_ns": start,
            "duration_ns": duration,
        }
        if kind is Kind.PYTHON:
            self.python.add(rows, **columns)
        elif kind is Kind.ANNOTATION:
            self.annotations.add(rows, **columns)
        elif kind is Kind.OP:
            self._ops(rows, events, columns)
        elif kind is Kind.RUNTIME:
            args = self._args(events, LaunchArgs)
            self.runtime.add(rows, corr=[each.correlation for each in args], **columns)
        elif kind in (Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET):
            self._device(kind, rows, events, columns)
        else:
            self.others.add(rows, kind=int(kind), args=self._texts(events), **columns)

    def _ops(self, rows: int, events: list[Any], columns: dict[str, Any]) -> None:
        args: list[OpArgs] = self._args(events, OpArgs)
        shapes = [each.shapes for each in args]
        if not any(map(bytes, shapes[:64])):
            shapes = [each.shapes if bytes(each.shapes) else each.old_shapes for each in args]
        self.ops.add(
            rows,
            external=[each.external for each in args],
            sequence=[each.sequence for each in args],
            forward_thread=[each.forward_thread for each in args],
            shapes=self.json.texts(shapes),
            types=self.json.texts([each.types for each in args]),
            values=self.json.texts([each.values for each in args]),
            stack=_strings(self.stacks, [each.stack for each in args]),
            modules=_strings(self.modules, [each.modules for each in args]),
            collective=self._collectives(args),
            **columns,
        )

    def _device(self, kind: Kind, rows: int, events: list[Any], columns: dict[str, Any]) -> None:
        args: list[DeviceArgs] = self._args(events, DeviceArgs)
        corr = [each.correlation for each in args]
        if not all(corr):
            # Only arrows can tell which call launched it.
            self._needs_arrows = True
        self.device.add(
            rows,
            kind=int(kind),
            device=[each.device for each in args],
            stream=[each.stream for each in args],
            corr=corr,
            external=[each.external or each.old_external for each in args],
            size_bytes=[max(each.bytes, each.size) for each in args],
            occupancy=np.array([each.occupancy for each in args], dtype=np.float32),
            grid=self.json.texts([each.grid for each in args]),
            block=self.json.texts([each.block for each in args]),
            facts=self.facts.codes([_facts(each) for each in args]),
            collective=self._collectives(args),
            **columns,
        )

    def _collectives(self, args: list[Any]) -> Codes | int:
        if not any(each.collective for each in args):
            return -1
        told = [
            (e.collective, e.dtype, e.group, e.group_size, e.sent, e.received)
            if e.collective
            else None
            for e in args
        ]
        codes = self.collectives.codes(told)
        none = self.collectives.code(None)
        return np.where(codes == none, -1, codes).astype(np.int32)

    def _instants(self, events: list[Any]) -> None:
        memory = [event for event in events if event.name == MEMORY]
        if len(memory) < len(events):
            told = [
                event
                for event in events
                if event.name != MEMORY and not (event.name or "").startswith(_SKIPPED_INSTANTS)
            ]
            told, start = self._timed(told)
            if told:
                self.others.add(
                    len(told),
                    kind=int(Kind.OTHER),
                    args=self._texts(told),
                    name=self.names.codes(none_as([event.name for event in told], "")),
                    thread=self._threads(told),
                    start_ns=start,
                    duration_ns=0,
                )
        memory, times = self._timed(memory)
        if memory:
            args: list[MemoryArgs] = self._args(memory, MemoryArgs)
            self.memory.add(
                len(memory),
                thread=self._threads(memory),
                t_ns=times,
                device_type=[each.device_type for each in args],
                device=[each.device for each in args],
                size_bytes=[each.bytes for each in args],
                address=[each.address for each in args],
                allocated=[each.allocated for each in args],
                reserved=[each.reserved for each in args],
            )

    def _counters(self, events: list[Any]) -> None:
        events, times = self._timed(events)
        threads = self._threads(events) if events else ()
        for event, at, thread in zip(events, times.tolist(), threads, strict=True):
            try:
                values = msgspec.json.decode(event.args, type=dict[str, Any], strict=False)
            except BROKEN:
                values = {}
            good = [(k, v) for k, v in values.items() if isinstance(v, int | float)]
            if not good:
                self.problems.add("counters without a number are left out")
            for key, value in good:
                name = key if len(good) == 1 or not event.name else f"{event.name}: {key}"
                self.counters.add(
                    1, name=self.names.code(name), t_ns=at, thread=int(thread), value=float(value)
                )

    def _arrows(self, category: str | None, events: list[Any], finishes: bool) -> None:
        name = (category or "").lower()
        if name in FORWARD_BACKWARD:
            role = 0
        elif name in LAUNCHES:
            if not self._needs_arrows:
                return
            role = 2
        else:
            self.problems.add(f"arrows of the category {category!r} are not imported", len(events))
            return
        events, times = self._timed(events)
        ids = [event.id if isinstance(event.id, int) else hash(event.id) for event in events]
        if events:
            self.arrows.add(
                len(events),
                id=ids,
                thread=self._threads(events),
                t_ns=times,
                role=role + int(finishes),
            )

    def _ends(self, category: str | None, events: list[Any], begins: bool) -> None:
        events, times = self._timed(events)
        if events:
            self.ends.add(
                len(events),
                thread=self._threads(events),
                t_ns=times,
                begins=int(begins),
                name=self.names.codes(none_as([event.name for event in events], "")),
                category=self.categories.code(category or ""),
                args=self._texts(events),
            )

    def _timed(self, events: list[Any]) -> tuple[list[Any], Ints]:
        """Return the events that have a time, and their times in ns."""
        if not events:
            return events, np.zeros(0, dtype=np.int64)
        if isinstance(events[0], ExactEvent):
            times = from_texts([event.ts for event in events])
        else:
            times = from_floats(np.array([event.ts for event in events], dtype=np.float64))
        unknown = times == UNKNOWN
        if unknown.any():
            self.problems.add("events have no time and are left out", int(unknown.sum()))
            events = [event for event, bad in zip(events, unknown, strict=True) if not bad]
            times = times[~unknown]
        return events, times

    def _threads(self, events: list[Any]) -> Codes:
        return self.threads.codes([(event.pid, event.tid) for event in events])

    def _args(self, events: list[Any], kind: Any) -> list[Any]:
        return decode_args([event.args for event in events], _DECODERS[kind], kind, self.problems)

    def _texts(self, events: list[Any]) -> Codes:
        raws = [bytes(event.args) for event in events]
        kept = [raw if len(raw) <= _MAX_ARGS_BYTES and raw != b"{}" else _NO_RAW for raw in raws]
        return self.json.texts([Raw(raw) for raw in kept])


DEVICE_FACTS = (
    "registers per thread", "shared memory", "blocks per SM", "warps per SM",
    "theoretical occupancy %", "kind", "graph id", "graph node id",
)  # fmt: skip
"""Names of what ``Collected.facts`` holds."""


def _facts(args: DeviceArgs) -> tuple[Any, ...]:
    return (
        args.registers, args.shared, args.blocks, args.warps, args.theoretical, args.kind,
        args.graph, args.graph_node,
    )  # fmt: skip


def _strings(known: Distinct, texts: list[str]) -> Codes | int:
    if not any(texts):
        return -1
    codes = known.codes(texts)
    empty = known.code("")
    return np.where(codes == empty, -1, codes).astype(np.int32)


_DECODERS = {
    kind: msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    for kind in (OpArgs, LaunchArgs, DeviceArgs, MemoryArgs)
}
