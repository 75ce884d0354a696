"""One file of Kineto's, or another Chrome trace, as one rank's shard."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracelens.convert.kineto_args import ELEMENT_BYTES
from tracelens.convert.kineto_bytes import Source
from tracelens.convert.kineto_clean import leave_out_impossible, pair_ends
from tracelens.convert.kineto_columns import thread_number
from tracelens.convert.kineto_decode import BROKEN, EventReader
from tracelens.convert.kineto_events import DEVICE_FACTS, Collected
from tracelens.convert.kineto_kinds import Kind
from tracelens.convert.kineto_ranks import About
from tracelens.convert.kineto_text import EventText, NoEventsError
from tracelens.convert.kineto_threads import device_names, device_numbers, thread_ids
from tracelens.convert.problems import Problems
from tracelens.convert.profile_columns import args_text, coded
from tracelens.convert.profile_names import Names, is_users, module_path
from tracelens.convert.profile_nesting import Ints
from tracelens.convert.profile_ranges import (
    ANNOTATION,
    DEVICE_ANNOTATION,
    DEVICE_OTHER,
    OP,
    OTHER,
    OVERHEAD,
    PYTHON,
    RUNTIME,
    SYNC,
    Codes,
    HostRanges,
    OpFacts,
    Texts,
    frames_of,
)
from tracelens.convert.profile_rows import Nested
from tracelens.convert.profile_write import Collective, DeviceWork, Writer
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard

_RANGE_KINDS = {
    Kind.OVERHEAD: OVERHEAD,
    Kind.OTHER: OTHER,
    Kind.SYNC: SYNC,
    Kind.DEVICE_ANNOTATION: DEVICE_ANNOTATION,
    Kind.DEVICE_OTHER: DEVICE_OTHER,
}
_MICROSECOND_NS = 1000
_SLACK_US = 2
"""Times of whole µs are rounded: an inner range can end this much after the outer one."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a file.

    Attributes:
        ops: ops written.
        steps: steps found.
        kernels: kernels and copies written.
    """

    ops: int
    steps: int
    kernels: int


class ProfileFile:
    """A file that was read.

    Args:
        source: where it is.
        told: called with the bytes read of the file on disk.

    Attributes:
        about: what it says of itself.
        problems: what could not be read.
        start_ns: time of its first event by its own clock, with its base.

    Raises:
        TraceError: it cannot be read, or holds no event.
    """

    def __init__(self, source: Source, told: Callable[[int], None] | None = None) -> None:
        self.source = source
        self.problems = Problems(source.name)
        text = EventText(source.pieces(told))
        found = Collected(self.problems)
        try:
            for batch in EventReader(text, self.problems).batches():
                found.add(batch)
        except NoEventsError:
            raise TraceError(f"{source.name}: {_foreign(text)}") from None
        if text.cut:
            self.problems.add(f"{text.cut}: what came before is kept")
        self.about = About.of(text.head, text.rest)
        pair_ends(found)
        leave_out_impossible(found)
        self._found = found
        starts = [
            int(table.take(column).min())
            for table, column in (
                *((each, "start_ns") for each in self._ranges()),
                (found.device, "start_ns"),
                (found.memory, "t_ns"),
                (found.counters, "t_ns"),
            )
            if table.rows
        ]
        if not starts:
            what = self.problems.summary() or (
                f"{found.count} of them only name threads" if found.count else "none at all"
            )
            raise TraceError(f"{source.name}: holds no event that took time ({what})")
        self._first_ns = min(starts)
        self.start_ns = self._first_ns + self.about.base_ns

    @property
    def framework(self) -> str:
        """What was profiled: ``"torch"``, or empty for another program's Chrome trace."""
        found = self._found
        return "torch" if found.ops.rows or found.device.rows or found.runtime.rows else ""

    def write(self, shard: BulkShard, epoch_ns: int) -> Written:
        """Write its rows and forget them.

        Args:
            shard: of its rank.
            epoch_ns: Unix time, or the file's own, of the trace's time 0.
        """
        found = self._found
        shift = self.about.base_ns - epoch_ns
        n_threads = len(found.threads)
        host = self._host(shift, n_threads)
        facts, texts, collectives, op_collective = self._facts()
        coarse = not bool((host.start_ns % _MICROSECOND_NS).any())
        nested = Nested(
            host,
            facts,
            texts,
            slack_ns=_SLACK_US * _MICROSECOND_NS if coarse else 0,
            arrows=self._arrows(host, shift),
        )
        del host
        if nested.repeated_steps:
            self.problems.add("marks of a step that another one marks too", nested.repeated_steps)
        json_texts = [_on_one_line(text) for text in found.json.values]
        writer = Writer(shard, nested, thread_ids(self._found.threads.values), json_texts)
        ops = writer.ops()
        spans = writer.spans()
        args = [args_text(DEVICE_FACTS, values) for values in found.facts.values]
        work = self._device(shift)
        kernels, alone = writer.kernels(work, args, collectives, op_collective)
        if alone:
            message = f"{alone} of {kernels} kernels and copies have no call that is in the profile"
            shard.event("note", kind="import", severity="info", message=message)
        self._memory(writer, shift)
        self._counters(shard, shift)
        steps = writer.step_events()
        del spans
        return Written(ops, steps, kernels)

    def _ranges(self) -> list[Any]:
        found = self._found
        return [found.python, found.annotations, found.ops, found.runtime, found.others]

    def _host(self, shift: int, n_threads: int) -> HostRanges:
        found = self._found
        tables = self._ranges()
        kinds = [
            np.full(table.rows, kind, dtype=np.uint8)
            for table, kind in zip(tables, (PYTHON, ANNOTATION, OP, RUNTIME), strict=False)
        ]
        of_kind = np.zeros(max(Kind) + 1, dtype=np.uint8)
        for given, kind in _RANGE_KINDS.items():
            of_kind[given] = kind
        others = of_kind[found.others.take("kind")]
        start = np.concatenate([table.drop("start_ns") for table in tables]) + shift
        own = found.others.take("thread")
        thread = np.concatenate([table.drop("thread") for table in tables])
        rows = len(start)
        of_device = np.arange(rows) >= rows - found.others.rows
        of_device[of_device] = others >= SYNC
        # A stream may have the number of a thread: it is none.
        thread[of_device] += n_threads
        fact = np.full(rows, -1, dtype=np.int32)
        before_ops = tables[0].rows + tables[1].rows
        before_calls = before_ops + found.ops.rows
        fact[before_ops:before_calls] = np.arange(found.ops.rows, dtype=np.int32)
        calls = slice(before_calls, before_calls + found.runtime.rows)
        fact[calls] = np.arange(found.runtime.rows, dtype=np.int32)
        args = found.others.drop("args")
        if not self.framework:
            names = self._process_names()[own] if len(args) else args
            args = np.where(args < 0, names, args)
        fact[rows - found.others.rows :] = args
        return HostRanges(
            np.concatenate([*kinds, others]),
            np.concatenate([table.drop("name") for table in tables]),
            thread,
            start,
            start + np.concatenate([table.drop("duration_ns") for table in tables]),
            fact,
            found.runtime.drop("corr"),
        )

    def _process_names(self) -> Codes:
        """Return the number of a JSON text with the process's name for each thread, -1 for none."""
        found = self._found
        codes = []
        for pid, _ in found.threads.values:
            name = found.process_names.get(thread_number(pid))
            text = json.dumps({"process": name}).encode()
            codes.append(-1 if name is None else found.json.code(text))
        return np.array(codes, dtype=np.int32)

    def _facts(self) -> tuple[OpFacts, Texts, list[Collective], Codes]:
        found = self._found
        ops = found.ops
        names = [str(name) for name in found.names.values]
        frames, of_name, of_stack = frames_of(names, found.stacks.values)
        paths: dict[str, int] = {}
        of_modules = [
            paths.setdefault(path, len(paths)) if path else -1
            for path in map(module_path, found.modules.values)
        ]
        stack = ops.drop("stack")
        module = ops.drop("modules")
        facts = OpFacts(
            ops.drop("external"),
            ops.drop("sequence"),
            ops.drop("forward_thread"),
            ops.drop("shapes"),
            ops.drop("types"),
            ops.drop("values"),
            _mapped(stack, of_stack.tolist()),
            _mapped(module, of_modules),
        )
        users = np.array([is_users(frame.file) for frame in frames], dtype=np.bool_)
        # A frame of the Python tracer has its function's line, one of a call stack the line itself.
        exact = np.zeros(len(frames), dtype=np.bool_)
        exact[of_stack[of_stack >= 0]] = True
        exact[of_name[of_name >= 0]] = False
        texts = Texts(Names.of(names), frames, of_name, users, exact, list(paths))
        collectives = [_collective(told) for told in found.collectives.values]
        return facts, texts, collectives, ops.drop("collective")

    def _device(self, shift: int) -> DeviceWork:
        device = self._found.device
        start = device.drop("start_ns") + shift
        pid, tid = device_numbers(self._found.threads.values)
        thread = device.drop("thread")
        number, stream = device.drop("device"), device.drop("stream")
        number = np.where(number < 0, pid[thread].clip(0), number) if len(number) else number
        stream = np.where(stream < 0, tid[thread], stream) if len(stream) else stream
        return DeviceWork(
            (device.drop("kind") - int(Kind.KERNEL)).astype(np.uint8),
            device.drop("name"),
            number,
            stream,
            start,
            start + device.drop("duration_ns"),
            device.drop("corr"),
            device.drop("external"),
            device.drop("size_bytes"),
            device.drop("occupancy"),
            device.drop("grid"),
            device.drop("block"),
            device.drop("facts"),
            device.drop("collective"),
        )

    def _memory(self, writer: Writer, shift: int) -> None:
        memory = self._found.memory
        if not memory.rows:
            return
        kind, number = memory.drop("device_type"), memory.drop("device")
        code, devices = device_names(kind, number)
        writer.memory(
            memory.drop("thread"),
            memory.drop("t_ns") + shift,
            code,
            devices,
            memory.drop("size_bytes"),
            memory.drop("address"),
            memory.drop("allocated"),
            memory.drop("reserved"),
        )

    def _counters(self, shard: BulkShard, shift: int) -> None:
        counters = self._found.counters
        if not counters.rows:
            return
        t_ns = counters.drop("t_ns") + shift
        order = np.argsort(t_ns, kind="stable")
        devices = [str(thread_number(pid)) for pid, _ in self._found.threads.values]
        shard.write(
            "counters",
            {
                "t_ns": t_ns[order],
                "name": coded(
                    counters.drop("name")[order], [str(n) for n in self._found.names.values]
                ),
                "device": coded(counters.drop("thread")[order], devices),
                "value": counters.drop("value")[order],
            },
        )

    def _arrows(self, host: HostRanges, shift: int) -> tuple[Ints, Ints] | None:
        """Return rows of backward and of forward ops that arrows tie; ``None`` for no arrows."""
        arrows = self._found.arrows
        if not arrows.rows:
            return None
        role = arrows.take("role")
        ends = []
        for wanted in (1, 0):
            chosen = role == wanted
            ids = arrows.take("id")[chosen]
            keys = np.stack(
                [arrows.take("thread")[chosen].astype(np.int64),
                 arrows.take("t_ns")[chosen] + shift], axis=1,
            )  # fmt: skip
            ends.append((ids, _rows_at(host, keys)))
        (finish, sinks), (start, sources) = ends
        if not len(finish) or not len(start):
            return None
        order = np.argsort(start, kind="stable")
        at = np.searchsorted(start[order], finish).clip(0, len(start) - 1)
        chosen_sources = sources[order[at]]
        good = (start[order[at]] == finish) & (sinks >= 0) & (chosen_sources >= 0)
        return sinks[good], chosen_sources[good]


def _on_one_line(text: bytes) -> str:
    """Return JSON text as ``[8, 1, 1]``, however its writer laid it out."""
    with contextlib.suppress(*BROKEN):
        text = msgspec.json.format(text, indent=0)
    return text.decode("utf-8", "replace")


def _mapped(codes: Codes, to: Sequence[int]) -> Codes:
    """Return other numbers of the same texts; -1 stays."""
    return np.array([*to, -1], dtype=np.int32)[codes] if to else codes


def _rows_at(host: HostRanges, keys: NDArray[np.int64]) -> Ints:
    """Return the op that starts on a thread at a time, the last in the file, or -1."""
    rows = np.flatnonzero(host.kind == OP)
    found = np.full(len(keys), -1, dtype=np.int64)
    if not len(rows) or not len(keys):
        return found
    order = rows[np.lexsort((host.start_ns[rows], host.thread[rows]))]
    all_keys = np.concatenate(
        [np.stack([host.thread[order].astype(np.int64), host.start_ns[order]], axis=1), keys]
    )
    _, rank = np.unique(all_keys, axis=0, return_inverse=True)
    rank = rank.reshape(-1)
    known, wanted = rank[: len(order)], rank[len(order) :]
    at = np.searchsorted(known, wanted, side="right") - 1
    same = (at >= 0) & (known[at] == wanted)
    found[same] = order[at[same]]
    return found


def _collective(told: tuple[str, str, str, int, int, int] | None) -> Collective:
    if told is None:
        return Collective("", "", "", 0, -1)
    name, dtype, group, ranks, sent, received = told
    item = ELEMENT_BYTES.get(dtype.lower())
    elements = max(sent, received)
    size = elements * item if item is not None and elements >= 0 else -1
    return Collective(name.lower().lstrip("_"), dtype, group, max(ranks, 0), size)


def _foreign(text: EventText) -> str:
    """Say what a file is that has no events."""
    known: Sequence[tuple[bytes, str]] = (
        (b'"nodes"', "an execution trace (Chakra), which has no times of devices"),
        (b"rocprofiler-sdk", "rocprofv3's JSON"),
        (b"speedscope", "speedscope's JSON"),
    )
    head = text.head[: 1 << 16] or text.beginning
    if not head.strip():
        return "the file is empty" if not text.cut else text.cut
    for mark, what in known:
        if mark in head:
            return f"no Chrome trace but {what}"
    return 'no Chrome trace: it has no array of events ("traceEvents")'
