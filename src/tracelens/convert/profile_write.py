"""Writes nested ranges and device work as the tables ``ops``, ``spans``, ``kernels``, ``memory``.

Rows are gathered and written some hundred thousand at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.convert._columns import positions
from tracelens.convert.profile_columns import (
    Coder,
    CollectiveNames,
    coded,
    ids_at,
    slices,
    words,
)
from tracelens.convert.profile_nesting import Ints, Places, nearest
from tracelens.convert.profile_ranges import ANNOTATION, OTHER, PYTHON, RUNTIME, Codes
from tracelens.convert.profile_rows import PHASES, Nested
from tracelens.events import OpFlag
from tracelens.storage.bulk import BulkShard
from tracelens.storage.columns import Coded, Masked

_SPAN_KINDS = (
    "python", "annotation", "other", "runtime", "overhead", "other", "sync", "device_annotation",
    "other", "module", "step", "data",
)  # fmt: skip
"""Kind of a span by its kind of range, then those that its name tells."""
_MODULE, _STEP, _DATA = range(9, 12)


@dataclass(slots=True)
class DeviceWork:
    """Kernels and copies; every array has shape (n,). -1 stands for what is not known.

    Attributes:
        kind: 0 ``kernel``, 1 ``memcpy``, 2 ``memset``.
        name: number into the names.
        device: device number.
        stream: stream number.
        start_ns: since the trace's epoch.
        end_ns: since the trace's epoch.
        corr: correlation id of the call that launched it, 0 for none.
        external: external id of its op, 0 for none.
        size_bytes: what a copy moves.
        occupancy: percent, NaN where not known.
        grid: number into the texts, as is ``block``.
        block: of the launch.
        facts: number into ``args``.
        collective: number into the collectives.
    """

    kind: NDArray[np.uint8]
    name: Codes
    device: Codes
    stream: Codes
    start_ns: Ints
    end_ns: Ints
    corr: Ints
    external: Ints
    size_bytes: Ints
    occupancy: NDArray[np.float32]
    grid: Codes
    block: Codes
    facts: Codes
    collective: Codes


@dataclass(frozen=True, slots=True)
class Collective:
    """What is told of a collective.

    Attributes:
        name: ``"allreduce"`` ...
        dtype: element type.
        group: process group.
        ranks: processes in it, 0 if not known.
        size_bytes: what a process gives or gets, the larger; -1 if not known.
    """

    name: str
    dtype: str
    group: str
    ranks: int
    size_bytes: int


class Writer:
    """Writes one rank's tables.

    Args:
        shard: where to.
        nested: what ran on the host.
        threads: process and thread id of each thread number; a process id that is no number is
            ``None``.
        texts: JSON texts that shapes, types, values, grids, blocks and arguments number.
    """

    def __init__(
        self,
        shard: BulkShard,
        nested: Nested,
        threads: Sequence[tuple[int | None, int]],
        texts: Sequence[str],
    ) -> None:
        self._shard = shard
        self._nested = nested
        self._texts = texts
        self._pid = np.array([-1 if pid is None else pid for pid, _ in threads], dtype=np.int64)
        self._no_pid = np.array([pid is None for pid, _ in threads], dtype=np.bool_)
        self._tid = np.array([tid for _, tid in threads], dtype=np.int64)
        spans = np.flatnonzero(~nested.is_op).astype(np.int32)
        self._span_places = spans[np.argsort(nested.start_ns[spans], kind="stable")]
        self._span_id = np.full(len(nested), -1, dtype=np.int32)
        self._span_id[self._span_places] = np.arange(len(spans), dtype=np.int32)
        self._frames = nested.frames()
        self._modules = nested.modules()
        frames = nested.texts.frames
        self._files = Coder([frame.file for frame in frames])
        self._functions = Coder([frame.function for frame in frames])
        self._lines = np.array([*(frame.line for frame in frames), 0], dtype=np.int64)

    def ops(self) -> int:
        """Write ``ops``; return how many."""
        nested, facts = self._nested, self._nested.ops
        places = nested.op_places
        if not len(places):
            return 0
        steps = nested.steps.of(nested.start_ns[places])
        order = positions(steps)
        phases, forward = nested.phases(), nested.forward()
        composite = np.zeros(len(nested), dtype=np.bool_)
        outer = nested.op_around[places]
        composite[outer[outer >= 0]] = True
        inexact = np.append(~nested.texts.exact, False)
        for rows in slices(len(places)):
            at = places[rows]
            fact = nested.fact[at]
            self._shard.write(
                "ops",
                {
                    "op_id": np.arange(rows.start, rows.stop),
                    "step": steps[rows],
                    "ord": order[rows],
                    "parent_id": ids_at(nested.op_id, nested.op_around[at]),
                    "fwd_op_id": ids_at(nested.op_id, forward[at]),
                    "name": coded(nested.name[at], nested.texts.names.texts),
                    "module": coded(self._modules[at], nested.texts.modules),
                    "phase": Coded(phases[at], PHASES),
                    **self._source(self._frames[at]),
                    "tid": self._tid[nested.thread[at]],
                    "start_ns": nested.start_ns[at],
                    "duration_ns": nested.end_ns[at] - nested.start_ns[at],
                    "in_shapes": coded(facts.shapes[fact], self._texts),
                    "in_dtypes": coded(facts.types[fact], self._texts),
                    "in_values": coded(facts.values[fact], self._texts),
                    "flags": int(OpFlag.PROFILED)
                    + int(OpFlag.COMPOSITE) * composite[at]
                    + int(OpFlag.INEXACT_SOURCE) * inexact[self._frames[at]],
                },
            )
        return len(places)

    def spans(self) -> int:
        """Write ``spans``; return how many."""
        nested = self._nested
        places = self._span_places
        if not len(places):
            return 0
        around = nearest(nested.parent, ~nested.is_op)
        kinds = self._span_kinds()
        own_frame = nested.texts.frame_of_name
        for rows in slices(len(places)):
            at = places[rows]
            kind = nested.kind[at]
            frame = np.where(kind == PYTHON, own_frame[nested.name[at]], -1)
            module = np.where(kinds[at] == _MODULE, self._modules[at], -1)
            corr = np.zeros(len(at), dtype=np.int64)
            calls = kind == RUNTIME
            corr[calls] = nested.corr[nested.fact[at[calls]]]
            thread = nested.thread[at]
            self._shard.write(
                "spans",
                {
                    "span_id": np.arange(rows.start, rows.stop),
                    "step": nested.steps.of(nested.start_ns[at]),
                    "kind": Coded(kinds[at], _SPAN_KINDS),
                    "name": coded(nested.name[at], nested.texts.names.texts),
                    "pid": Masked(self._pid[thread], self._no_pid[thread]),
                    "tid": self._tid[thread],
                    "start_ns": nested.start_ns[at],
                    "duration_ns": nested.end_ns[at] - nested.start_ns[at],
                    "parent_id": ids_at(self._span_id, around[at]),
                    "op_id": ids_at(nested.op_id, nested.op_around[at]),
                    "corr_id": Masked(corr, corr == 0),
                    "module": coded(module, nested.texts.modules),
                    **self._source(frame),
                    "args": coded(np.where(kind >= OTHER, nested.fact[at], -1), self._texts),
                },
            )
        return len(places)

    def kernels(
        self, work: DeviceWork, args: Sequence[str], collectives: Sequence[Collective],
        op_collective: Codes,
    ) -> tuple[int, int]:  # fmt: skip
        """Write ``kernels``; return how many, and how many of them no call is known of.

        Args:
            work: kernels and copies.
            args: JSON texts that ``work.facts`` numbers.
            collectives: what ``work.collective`` numbers.
            op_collective: what the op at each row of ``OpFacts`` tells, -1 for nothing.
        """
        nested = self._nested
        order = np.argsort(work.start_ns, kind="stable")
        launch = nested.launches(work.corr)
        op = nested.op_of(launch)
        named = np.where(op < 0, nested.externals(work.external), -1)
        op = np.where(op >= 0, op, named)
        issued = np.where(launch >= 0, launch, op)
        when = work.start_ns.copy()
        known = issued >= 0
        when[known] = nested.start_ns[issued[known]]
        steps = nested.steps.of(when)
        names = nested.texts.names
        kind = work.kind.astype(np.int32)
        comm = (kind == 0) & names.comm[work.name] if len(kind) else kind.astype(np.bool_)
        kind[comm] = 3
        told = self._collectives(work, comm, op, op_collective)
        by_name = CollectiveNames(names.texts)
        for rows in slices(len(order)):
            at = order[rows]
            corr, size = work.corr[at], work.size_bytes[at].copy()
            of = told[at]
            facts = [collectives[code] if code >= 0 else None for code in of.tolist()]
            sent = [-1 if fact is None else fact.size_bytes for fact in facts]
            size = np.where((size < 0) & comm[at], np.array(sent, dtype=np.int64), size)
            ranks = [0 if fact is None else fact.ranks for fact in facts]
            self._shard.write(
                "kernels",
                {
                    "kern_id": np.arange(rows.start, rows.stop),
                    "step": steps[at],
                    "op_id": ids_at(nested.op_id, op[at]),
                    "corr_id": Masked(corr, corr == 0),
                    "kind": Coded(kind[at], ("kernel", "memcpy", "memset", "comm")),
                    "name": coded(work.name[at], names.texts),
                    "device": work.device[at],
                    "stream": work.stream[at],
                    "start_ns": work.start_ns[at],
                    "duration_ns": work.end_ns[at] - work.start_ns[at],
                    "size_bytes": Masked(size, size < 0),
                    "grid": coded(work.grid[at], self._texts),
                    "block": coded(work.block[at], self._texts),
                    "comm_group": words(None if f is None else f.group for f in facts),
                    "span_id": ids_at(self._span_id, launch[at]),
                    "collective": words(
                        (fact.name if fact else by_name(name)) if is_comm else None
                        for fact, name, is_comm in zip(
                            facts, work.name[at].tolist(), comm[at].tolist(), strict=True
                        )
                    ),
                    "comm_ranks": Masked(ranks, np.array(ranks) <= 0),
                    "comm_dtype": words(None if f is None else f.dtype for f in facts),
                    "occupancy": Masked(
                        np.nan_to_num(work.occupancy[at]), np.isnan(work.occupancy[at])
                    ),
                    "args": coded(work.facts[at], args),
                },
            )
        return len(order), int((issued < 0).sum())

    def memory(
        self, thread: Codes, t_ns: Ints, device: Codes, devices: Sequence[str],
        size_bytes: Ints, address: Ints, allocated: Ints, reserved: Ints,
    ) -> int:  # fmt: skip
        """Write ``memory``; return how many rows.

        Args:
            thread: number of the thread that asked, shape (n,).
            t_ns: when, shape (n,).
            device: number into ``devices``, shape (n,).
            devices: ``"cpu"``, ``"cuda:0"`` ...
            size_bytes: allocated, freed if below 0, shape (n,).
            address: 0 for not known, shape (n,).
            allocated: on the device afterwards, -1 for not known, shape (n,).
            reserved: by the allocator afterwards, -1 for not known, shape (n,).
        """
        nested = self._nested
        order = np.argsort(t_ns, kind="stable")
        places = nested.at(thread, t_ns)
        for rows in slices(len(order)):
            at = order[rows]
            place = places[at]
            op = nested.op_of(place)
            frame = np.where(place >= 0, self._frames[place], -1) if len(nested) else place
            source = self._source(frame)
            self._shard.write(
                "memory",
                {
                    "step": nested.steps.of(t_ns[at]),
                    "t_ns": t_ns[at],
                    "device": coded(device[at], devices),
                    "size_bytes": size_bytes[at],
                    "address": Masked(address[at], address[at] == 0),
                    "allocated_bytes": Masked(allocated[at], allocated[at] < 0),
                    "reserved_bytes": Masked(reserved[at], reserved[at] < 0),
                    "op_id": ids_at(nested.op_id, op),
                    "file": source["file"],
                    "line": source["line"],
                },
            )
        return len(order)

    def step_events(self) -> int:
        """Write an event for each step; return how many steps there are."""
        steps = self._nested.steps
        for number, start, end in zip(
            steps.number.tolist(), steps.start_ns.tolist(), steps.end_ns.tolist(), strict=True
        ):
            self._shard.event("step", step=number, start_ns=start, duration_ns=end - start)
        return len(steps.number)

    def _span_kinds(self) -> NDArray[np.uint8]:
        nested, names = self._nested, self._nested.texts.names
        kinds: NDArray[np.uint8] = nested.kind.copy()
        note = kinds == ANNOTATION
        kinds[note & (names.step >= 0)[nested.name]] = _STEP
        kinds[note & names.loader[nested.name]] = _DATA
        kinds[(nested.kind == PYTHON) & names.module[nested.name]] = _MODULE
        return kinds

    def _collectives(
        self, work: DeviceWork, comm: NDArray[np.bool_], op: Places, op_collective: Codes
    ) -> Codes:
        """Return what is told of each kernel's collective, by itself or by its op."""
        told: Codes = work.collective.copy()
        nested = self._nested
        rows = np.flatnonzero(comm & (told < 0) & (op >= 0))
        if not len(rows) or not (op_collective >= 0).any():
            return told
        has = np.zeros(len(nested), dtype=np.bool_)
        has[nested.op_places] = op_collective[nested.fact[nested.op_places]] >= 0
        around = nearest(nested.parent, has)
        place = np.where(has[op[rows]], op[rows], around[op[rows]])
        found = place >= 0
        told[rows[found]] = op_collective[nested.fact[place[found]]]
        return told

    def _source(self, frame: NDArray[Any]) -> dict[str, Any]:
        line = self._lines[frame]
        return {
            "file": self._files(frame),
            "line": Masked(line, line <= 0),
            "function": self._functions(frame),
        }
