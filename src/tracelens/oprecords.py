"""Writes the records of one op from Python: the op itself, further inputs, statistics.

Framework plugins share it: a `TensorReader` tells what a tensor of theirs is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tracelens.events import MAX_SLOT, NO_ID, SLOT_BITS, OpFlag, RecordKind, Role, Stats, TensorFlag

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter

Pairs = Sequence[tuple[Any, int]]
"""Tensors with the ids of the values they hold."""

_NO_NUMBERS = (0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, -1)
_NO_INPUTS = (NO_ID, NO_ID, NO_ID, NO_ID)
_DETAILED_STEPS = 8
_DETAILED_PER_STEP = 32


@dataclass
class OpRun:
    """One op as it ran.

    Attributes:
        op_id: its id.
        flags: ``OpFlag`` bits.
        phase: ``Phase`` code.
        site: interned site.
        fwd_op_id: of a backward op, its forward op.
        start_ns: since the trace's epoch.
        duration_ns: -1 if it was not measured.
        tid: operating-system thread id.
        inputs: tensors and their value ids, in order of the arguments.
        outputs: likewise.
    """

    op_id: int
    flags: int
    phase: int
    site: int
    fwd_op_id: int = NO_ID
    start_ns: int = 0
    duration_ns: int = -1
    tid: int = 0
    inputs: Pairs = ()
    outputs: Pairs = ()


def value_of(op_id: int, slot: int) -> int:
    """Return the id of the value an op wrote into one output."""
    return (op_id << SLOT_BITS) | min(slot, MAX_SLOT)


class TensorReader(Protocol):
    """What the writer asks of a framework's tensors; nothing of it may raise."""

    def layout_of(self, tensor: Any) -> list[Any] | None:
        """Return ``[dtype, [sizes], device]``, ``None`` for what is not a dense tensor."""

    def measure(self, tensor: Any) -> Stats | None:
        """Return a tensor's statistics, ``None`` for what holds no floats or cannot be read."""

    def first_bad(self, tensor: Any) -> tuple[int, ...]:
        """Return the flat indices of its first NaN or Inf elements, four at most."""

    def is_parameter(self, tensor: Any) -> bool:
        """Tell whether it is a trainable parameter."""


class OpWriter:
    """Writes ops into a shard's ring.

    Args:
        writer: the shard.
        tensors: reads the framework's tensors.

    Attributes:
        step: step of the ops to come.
        extra_flags: ``OpFlag`` bits that every op gets.
    """

    def __init__(self, writer: ShardWriter, tensors: TensorReader) -> None:
        self._writer = writer
        self._tensors = tensors
        self._layouts: dict[Any, int] = {}
        self._hits_of_site: dict[int, list[int]] = {}
        self.epoch_ns = writer.epoch_monotonic_ns
        self.step = 0
        self.extra_flags = 0

    def now_ns(self) -> int:
        """Return the time since the trace's epoch."""
        return time.monotonic_ns() - self.epoch_ns

    def op(self, run: OpRun, *, full: bool = False) -> None:
        """Write an op.

        Args:
            run: what ran. On a hit (flag ``HIT``) all its tensors are measured too.
            full: write its layout and measure its outputs even without a hit.
        """
        hit = bool(run.flags & OpFlag.HIT)
        measured = self._measure(run.outputs) if (hit or full) else []
        detail = hit and self._deserves_detail(run.site, measured)
        layout = self._layout(run) if (detail or full) else 0
        first = measured[0] if measured else None
        ids = [value_id for _, value_id in run.inputs]
        n_in, n_out = len(ids), len(run.outputs)
        writer = self._writer
        writer.write(
            writer.reserve(), RecordKind.OP, run.phase, run.flags | self.extra_flags, run.tid,
            run.site, layout, run.op_id, self.step, NO_ID, run.fwd_op_id, run.start_ns,
            run.duration_ns, *_four(ids, 0), min(n_in, 255), min(n_out, 255),
            2 if first is not None else 0, 0, *_numbers(first),
            run.outputs[0][1] if run.outputs else NO_ID,
        )  # fmt: skip
        for at in range(4, n_in, 4):
            self._more_inputs(run, ids, at)
        for slot, found in enumerate(measured):
            if found is not None and (slot or detail):
                tensor, value_id = run.outputs[slot]
                self._stat(run, Role.OUTPUT, slot, tensor, value_id, found)
        if detail:
            self._inputs_in_detail(run)

    def _inputs_in_detail(self, run: OpRun) -> None:
        written = {id(tensor) for tensor, _ in run.outputs} if run.flags & OpFlag.INPLACE else ()
        for slot, (tensor, value_id) in enumerate(run.inputs[:64]):
            found = self._tensors.measure(tensor)
            if found is not None:
                overwritten = TensorFlag.OVERWRITTEN if id(tensor) in written else 0
                self._stat(run, Role.INPUT, slot, tensor, value_id, found, int(overwritten))

    def _more_inputs(self, run: OpRun, ids: list[int], at: int) -> None:
        writer = self._writer
        writer.write(
            writer.reserve(), RecordKind.INPUTS, 0, 0, run.tid, 0, 0, run.op_id, self.step,
            NO_ID, NO_ID, run.start_ns, -1, *_four(ids, at), min(at, 255), 0, 0, 0,
            *_NO_NUMBERS, NO_ID,
        )  # fmt: skip

    def _stat(
        self, run: OpRun, role: Role, slot: int, tensor: Any, value_id: int, found: Stats,
        flags: int = 0,
    ) -> None:  # fmt: skip
        if self._tensors.is_parameter(tensor):
            flags |= TensorFlag.PARAMETER
        bad = self._tensors.first_bad(tensor) if found.nonfinite else ()
        layout = self._interned("tensor", self._tensors.layout_of(tensor))
        writer = self._writer
        writer.write(
            writer.reserve(), RecordKind.STAT, run.phase, flags, run.tid, run.site,
            layout, run.op_id, self.step, NO_ID, NO_ID, run.start_ns, -1, *_four(list(bad), 0),
            role, min(slot, 255), 2, 0, *_numbers(found), value_id,
        )  # fmt: skip

    def _measure(self, pairs: Pairs) -> list[Stats | None]:
        return [self._tensors.measure(tensor) for tensor, _ in pairs]

    def _deserves_detail(self, site: int, measured: list[Stats | None]) -> bool:
        """Tell whether a hit is news.

        A site that makes Infs step after step (an additive mask) is not: its output is still
        counted, but its inputs are measured only when a NaN appears.
        """
        if any(found is not None and found.nan for found in measured):
            return True
        known = self._hits_of_site.setdefault(site, [-1, 0, 0])
        if known[0] != self.step:
            known[0], known[1], known[2] = self.step, known[1] + 1, 0
        known[2] += 1
        return known[1] <= _DETAILED_STEPS and known[2] <= _DETAILED_PER_STEP

    def _layout(self, run: OpRun) -> int:
        value = {
            "in": [self._tensors.layout_of(tensor) for tensor, _ in run.inputs],
            "out": [self._tensors.layout_of(tensor) for tensor, _ in run.outputs],
        }
        return self._interned("layout", value)

    def _interned(self, kind: str, value: Any) -> int:
        key = (kind, repr(value))
        number = self._layouts.get(key)
        if number is None:
            if len(self._layouts) >= 1 << 16:
                self._layouts.clear()
            number = self._layouts[key] = int(self._writer.intern(kind, value))
        return number


def _four(ids: list[int], at: int) -> tuple[int, ...]:
    four = tuple(ids[at : at + 4])
    return four if len(four) == 4 else (*four, *_NO_INPUTS[len(four) :])


def _numbers(found: Stats | None) -> tuple[float, ...]:
    """Return the fields of a record from ``vmin`` to ``zero``."""
    if found is None:
        return _NO_NUMBERS
    return (
        found.vmin or 0.0, found.vmax or 0.0, found.mean or 0.0, found.std or 0.0,
        found.l2 or 0.0, found.numel, found.nan, found.posinf, found.neginf,
        -1 if found.zero is None else found.zero,
    )  # fmt: skip


_threads = threading.local()


def thread_id() -> int:
    """Return the operating system's id of the calling thread."""
    try:
        return int(_threads.tid)
    except AttributeError:
        _threads.tid = threading.get_native_id()
        return int(_threads.tid)
