"""The walk back from a bad value to the op that made it.

The words are those of the analysis: an op is the *origin* of a NaN if none of its inputs held
one, the origin of an Inf if all its inputs were finite; anything else is propagation. A NaN
origin that read an Inf is followed on to that Inf's origin: a computed Inf is the cause, a
constant one (a mask, an initial value) is not, and then the NaN origin is.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count, islice

from tracelens.analysis.names import (
    BATCH_OPS,
    FILLS,
    RUNNING_STATISTICS,
    WHOLE_FILLS,
    canonical,
    display,
    holds_indices,
    words,
)
from tracelens.analysis.source import OpSource, producer_id
from tracelens.analysis.state import FINITE, UNKNOWN, Bad, State, Values, output_of, passes_through
from tracelens.events import MAX_SLOT, NO_ID, Op, OpFlag, Phase, Stats, TensorRecord

MAX_OPS = 4096
"""Ops a walk looks at before it settles for what it has found."""
_EXTRA_OPS = 256
"""Further ops looked at for a certain cause once an uncertain one was found."""
_MAX_HITS = 256
_NEVER = 2**63 - 1  # above every op id


@dataclass(frozen=True, slots=True)
class Link:
    """One op on the way from the cause to the sink.

    Attributes:
        op: the op.
        value_id: its bad output, -1 if unknown.
        kind: the kind of badness followed through it.
        towards_sink: the next link, ``None`` at the sink's end.
    """

    op: Op
    value_id: int
    kind: Bad
    towards_sink: Link | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Where a walk ended.

    Attributes:
        origin: ``"op"`` made it, ``"data"``, ``"parameter"`` and ``"outside"`` came in bad,
            ``"constant"`` was written by the program, ``"uninitialised"`` memory was read, or
            ``"unresolved"``: the record that would tell is missing.
        kind: NaN or Inf, as made there.
        link: the op blamed (for what came in bad: the op that first read it), and the way on.
        tensor: the tensor that came in bad, if it did.
        reasons: why the answer is not certain; empty if it is.
        rank: 0 is a cause in itself; higher ranks are used only if nothing better was found.
    """

    origin: str
    kind: Bad
    link: Link
    tensor: TensorRecord | None = None
    reasons: tuple[str, ...] = ()
    rank: int = 0

    @property
    def exact(self) -> bool:
        """No link of the way was guessed."""
        return not self.reasons


@dataclass(order=True, slots=True)
class _Task:
    op_id: int
    order: int
    value_id: int = field(compare=False)
    kind: Bad = field(compare=False)
    link: Link | None = field(compare=False)
    reasons: tuple[str, ...] = field(compare=False)


class Walk:
    """One search, earliest producer first, so that the first cause is met before its echoes.

    Args:
        source: the recorded ops.
        values: states of values in that source.
        max_ops: how many ops to look at, at most.
    """

    def __init__(self, source: OpSource, values: Values, *, max_ops: int = MAX_OPS) -> None:
        self._source = source
        self._values = values
        self._max_ops = max_ops
        self._tasks: list[_Task] = []
        self._seen: set[tuple[int, Bad]] = set()
        self._order = count()
        self._causes: list[Cause] = []
        self._first_bad: dict[int, int] = {}
        self.ops_visited = 0

    def run(self, value_id: int, kind: Bad, reasons: tuple[str, ...] = ()) -> Cause | None:
        """Follow a bad value back; ``None`` if not even its producer is known."""
        self._push(value_id, kind, None, reasons)
        return self._search()

    def run_from_op(self, op: Op, kind: Bad, reasons: tuple[str, ...] = ()) -> Cause | None:
        """Follow back from an op whose output (not known which) is bad, or that read one."""
        told = [self._values.of_output(op, o.value_id) or UNKNOWN for o in op.outputs]
        if any(kind & state.possible for state in told) or not op.inputs:
            self._visit(op, _Task(op.op_id, 0, -1, kind, None, reasons))
        else:
            link = Link(op, -1, kind, None)
            self._follow(op, kind, [self._values.of_input(t) for t in op.inputs], link, reasons)
        return self._search()

    def _search(self) -> Cause | None:
        budget = self._max_ops
        while self._tasks and budget > 0:
            budget -= 1
            found = [cause for cause in self._causes if cause.rank == 0]
            if any(cause.exact for cause in found):
                break
            if found:
                budget = min(budget, _EXTRA_OPS)
            task = heapq.heappop(self._tasks)
            op = self._source.op(task.op_id)
            if op is None:
                self._lost(task)
                continue
            self.ops_visited += 1
            self._visit(op, task)
        if self._tasks and budget <= 0:
            looked = f"only the last {self.ops_visited} ops of the way back were looked at"
            self._causes = [_because(cause, looked) for cause in self._causes]
        return min(self._causes, key=_preference, default=None)

    def _push(self, value_id: int, kind: Bad, link: Link | None, reasons: tuple[str, ...]) -> None:
        if (value_id, kind) not in self._seen:
            self._seen.add((value_id, kind))
            task = _Task(producer_id(value_id), next(self._order), value_id, kind, link, reasons)
            heapq.heappush(self._tasks, task)

    def _visit(self, op: Op, task: _Task) -> None:
        link = Link(op, task.value_id, task.kind, task.link)
        if op.flags & OpFlag.GARBAGE:
            self._found("uninitialised", task.kind, link, task.reasons)
            return
        told = self._values.of_output(op, task.value_id) if task.value_id >= 0 else None
        if told is not None and not told.possible & task.kind:
            self._stale(op, task, link)
            return
        reasons = task.reasons
        if op.flags & OpFlag.UNSEEN_INPUTS:
            reasons += (f"some inputs of {display(op.name)} could not be identified",)
        if hands_over(op):
            self._came_with_data(op, task, link)
            return
        self._judge(op, task.kind, link, reasons)

    def _judge(self, op: Op, kind: Bad, link: Link, reasons: tuple[str, ...]) -> None:
        name = canonical(op.name)
        states = [
            FINITE
            if holds_indices(name, position, len(op.inputs))
            else self._input_state(op, tensor)
            for position, tensor in enumerate(op.inputs)
        ]
        if name in WHOLE_FILLS:
            states[:1] = [FINITE] * len(states[:1])
        updated = RUNNING_STATISTICS.get(name)
        if updated is not None and states and states[0].sure & kind:
            states[updated] = [FINITE] * len(states[updated])
        possible = Bad.NONE
        sure = Bad.NONE
        for state in states:
            possible |= state.possible
            sure |= state.sure
        if kind & sure or (kind & possible and passes_through(op)):
            self._follow(op, kind, states, link, reasons)
        elif kind & possible:
            doubt = (*reasons, f"not every input of {display(op.name)} was measured")
            self._follow(op, kind, states, link, doubt)
            self._found("op", kind, link, doubt, rank=1)
        elif op.flags & OpFlag.CONSTANT and (kind is Bad.INF or name in FILLS):
            # A NaN that the program writes on purpose is still what made everything NaN.
            self._found("constant", kind, link, reasons, rank=0 if kind is Bad.NAN else 2)
        elif kind is Bad.NAN and possible & Bad.INF:
            self._found("op", kind, link, reasons, rank=1)
            self._follow(op, Bad.INF, states, link, reasons)
        elif op.flags & OpFlag.HARMLESS:
            self._inconsistent(op, kind, link, reasons)
        elif kind is Bad.INF and sure & Bad.NAN:
            self._follow(op, Bad.NAN, states, link, reasons)
        else:
            self._found("op", kind, link, reasons)
        if kind is Bad.INF and kind & sure and _made_more(op):
            self._found("op", kind, link, reasons, rank=1)

    def _input_state(self, op: Op, tensor: TensorRecord) -> State:
        state = self._values.of_input(tensor)
        in_place = op.phase is Phase.OPTIMIZER and bool(op.flags & OpFlag.INPLACE)
        if state == UNKNOWN and in_place and not self._bad_before(op):
            # The parameter's old value was used by this step's forward, which stayed finite.
            return FINITE
        return state

    def _bad_before(self, op: Op) -> bool:
        """Tell whether something other than a -Inf mask was bad earlier in the op's step."""
        first = self._first_bad.get(op.step)
        if first is None:
            first = self._first_bad[op.step] = self._find_first_bad(op.step)
        return first < op.op_id

    def _find_first_bad(self, step: int) -> int:
        for hit in islice(self._source.hits(step), _MAX_HITS):
            op = self._source.op(hit)
            measured = [o.stats for o in op.outputs if o.stats is not None] if op else []
            if not measured or any(stats.nan or stats.posinf for stats in measured):
                return hit
        return _NEVER

    def _follow(
        self, op: Op, kind: Bad, states: list[State], link: Link, reasons: tuple[str, ...]
    ) -> None:
        """Go on to the inputs that hold the kind: the certain ones, else the possible ones."""
        chosen = [i for i, state in enumerate(states) if state.sure & kind]
        certain = bool(chosen)
        if not chosen:
            chosen = [i for i, state in enumerate(states) if state.maybe & kind]
            if len(chosen) > 1:
                name = display(op.name)
                reasons += (f"which of {len(chosen)} inputs of {name} was bad is a guess",)
        for index in chosen:
            tensor = op.inputs[index]
            if tensor.value_id < 0:
                self._came_from_outside(kind, tensor, link, reasons, certain=certain)
            else:
                self._push(tensor.value_id, kind, link, reasons)

    def _stale(self, op: Op, task: _Task, link: Link) -> None:
        """The producer's own output was fine: the badness is in what it did not overwrite."""
        if op.flags & OpFlag.INPLACE and op.inputs:
            tensor = op.inputs[0]
            if tensor.value_id < 0:
                self._came_from_outside(task.kind, tensor, link, task.reasons, certain=False)
            else:
                self._push(tensor.value_id, task.kind, link, task.reasons)
            return
        self._inconsistent(op, task.kind, task.link or link, task.reasons)

    def _inconsistent(self, op: Op, kind: Bad, link: Link, reasons: tuple[str, ...]) -> None:
        partial = [
            tensor.value_id
            for tensor in op.inputs
            if tensor.value_id >= 0
            and (writer := self._source.op(producer_id(tensor.value_id))) is not None
            and writer.flags & OpFlag.INPLACE
        ]
        if op is link.op and partial:
            for value_id in partial:
                doubt = "" if len(partial) == 1 else "which in-place write left it is a guess"
                self._push(value_id, kind, link, (*reasons, doubt) if doubt else reasons)
            return
        lost = (*reasons, f"something that was not recorded wrote it after {display(op.name)}")
        self._found("unresolved", kind, link, lost, rank=3)

    def _lost(self, task: _Task) -> None:
        if task.link is not None:
            gone = (*task.reasons, f"op {task.op_id}, which wrote it, is no longer recorded")
            self._found("unresolved", task.kind, task.link, gone, rank=3)

    def _came_with_data(self, op: Op, task: _Task, link: Link) -> None:
        tensor = output_of(op, task.value_id) if task.value_id >= 0 else None
        constant = task.kind is Bad.INF and tensor is not None and looks_like_mask(tensor.stats)
        origin = "constant" if constant else "data"
        slot = task.value_id & MAX_SLOT
        made = op.inputs[slot].value_id if slot < min(len(op.inputs), MAX_SLOT) else NO_ID
        if made >= 0:
            # A collate function of this process made it: an op of its own is the better answer.
            self._push(made, task.kind, link, task.reasons)
        rank = 2 if constant else 1 if made >= 0 else 0
        self._found(origin, task.kind, link, task.reasons, tensor, rank=rank)

    def _came_from_outside(
        self,
        kind: Bad,
        tensor: TensorRecord,
        link: Link,
        reasons: tuple[str, ...],
        *,
        certain: bool,
    ) -> None:
        if not certain:
            name = display(link.op.name)
            reasons += (f"an input of {name} was written by nothing recorded, and not measured",)
        if tensor.parameter:
            self._found("parameter", kind, link, reasons, tensor)
        elif kind is Bad.INF and looks_like_mask(tensor.stats):
            self._found("constant", kind, link, reasons, tensor, rank=2)
        else:
            self._found("outside", kind, link, reasons, tensor, rank=0 if certain else 3)

    def _found(
        self,
        origin: str,
        kind: Bad,
        link: Link,
        reasons: tuple[str, ...],
        tensor: TensorRecord | None = None,
        rank: int = 0,
    ) -> None:
        if origin in ("outside", "uninitialised", "data") and _by_way_of_data(link.towards_sink):
            rank = 3
        self._causes.append(Cause(origin, kind, link, tensor, reasons, rank))


def _by_way_of_data(link: Link | None) -> bool:
    """Tell whether a batch or a step's argument lies between the op and the sink."""
    while link is not None:
        if hands_over(link.op):
            return True
        link = link.towards_sink
    return False


def hands_over(op: Op) -> bool:
    """Tell whether an op hands over a batch (or a step's arguments) rather than computes one."""
    if op.phase is not Phase.DATA:
        return False
    return op.name in BATCH_OPS or all(tensor.value_id < 0 for tensor in op.inputs)


def looks_like_mask(stats: Stats | None) -> bool:
    """Tell whether a value with Infs looks written on purpose: a mask, an initial value.

    Its finite part is one constant (0 in additive masks) or absent, or it holds only -Inf. Nobody
    writes Infs of both signs into one mask.
    """
    if stats is None or stats.nan or (stats.posinf and stats.neginf):
        return False
    if stats.nonfinite == stats.numel or stats.posinf == 0:
        return True
    return stats.vmin is not None and stats.vmin == stats.vmax


_ELEMENTWISE = words(
    "exp exp2 expm1 pow square cosh sinh log log2 log10 log1p sqrt rsqrt reciprocal div "
    "true_divide mul add sub tan atanh logit erfinv digamma lgamma to _to_copy"
)


def _made_more(op: Op) -> bool:
    """Tell whether an elementwise op put out more Infs than its inputs held: new ones."""
    if canonical(op.name) not in _ELEMENTWISE or not op.outputs:
        return False
    out = op.outputs[0].stats
    held = [tensor.stats for tensor in op.inputs]
    if out is None or any(stats is None or stats.numel != out.numel for stats in held):
        return False
    nonfinite = sum(stats.nonfinite for stats in held if stats is not None)
    return out.posinf + out.neginf > nonfinite


def _because(cause: Cause, reason: str) -> Cause:
    reasons = (*cause.reasons, reason)
    return Cause(cause.origin, cause.kind, cause.link, cause.tensor, reasons, cause.rank)


def _preference(cause: Cause) -> tuple[int, int, int]:
    """Order causes: real before constant before lost, certain before guessed, then early."""
    return cause.rank, len(cause.reasons) > 0, cause.link.op.op_id
