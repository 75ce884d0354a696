"""A position in a trace that steps both ways, as a debugger does in a program.

The position is one op of one rank. Nothing is loaded but what a move looks at, so the cursor is as
quick in tens of millions of ops as in a hundred. A move that searches tells its progress and can
be cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracelens.breakpoints import Breakpoint, Breakpoints, SameSite
from tracelens.errors import ConfigError
from tracelens.events import NO_ID, Op
from tracelens.findings import Findings
from tracelens.levels import Beside, Beyond, OtherStep
from tracelens.marks import Marks
from tracelens.predicates import And, Number, Or, Reads
from tracelens.storage.chunks import Predicate
from tracelens.trail import Trail

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader
    from tracelens.storage.search import Found, Progress


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a move ended, and why.

    Attributes:
        reason: ``"step"`` (as asked), ``"breakpoint"``, ``"watch"``, ``"finding"``, ``"match"``,
            ``"start"`` or ``"end"`` (there is nothing further), ``"cancelled"``, ``"missing"``.
        op: the op it is at now, ``None`` in an empty trace.
        breakpoint: the one that was reached.
        note: one sentence more, or nothing.
    """

    reason: str
    op: Op | None
    breakpoint: Breakpoint | None = None
    note: str = ""


class Cursor:
    """A position in one rank's ops.

    Attributes:
        reader: the trace.
        rank: whose ops.
        op: the op it is at; ``None`` in an empty trace.
        trail: the ops in their order.
        breaks: where ``resume`` stops, beside the findings.
        marks: named positions, kept in a file beside the trace.
        findings: the findings and the ops they name.
        stop_at_findings: whether ``resume`` stops at ops that findings name.
        progress: told, while a move searches, ops looked at and ops to look at.
        cancelled: asked while a move searches; true ends it where it was.
    """

    def __init__(self, reader: TraceReader, rank: int = 0) -> None:
        """Begin at the first op."""
        self.reader = reader
        self.rank = rank
        self.op: Op | None = None
        self.trail = Trail(reader, rank)
        self.findings = Findings(reader, rank)
        self.breaks = Breakpoints(self.findings.op_ids)
        self.marks = Marks(reader.path)
        self.stop_at_findings = True
        self.progress: Progress | None = None
        self.cancelled: Callable[[], bool] | None = None
        self._count: int | None = None
        self.op = self.trail.first()

    # Where it is

    @property
    def op_id(self) -> int:
        """The id of the op it is at, -1 in an empty trace."""
        return NO_ID if self.op is None else self.op.op_id

    @property
    def index(self) -> int:
        """The position of that op among the rank's ops, from 0."""
        return 0 if self.op is None else self.reader.position(self.op.op_id, self.rank)

    @property
    def count(self) -> int:
        """How many ops the rank has recorded, as of the last ``refresh``."""
        if self._count is None:
            self._count = self.reader.count_ops(self.rank)
        return self._count

    def refresh(self) -> None:
        """Look again at a trace that is being written; the position stays."""
        self.reader.refresh()
        self.findings.forget()
        self._count = None
        if self.op is None:
            self.op = self.trail.first()

    # Moves

    def step(self, n: int = 1) -> Stop:
        """Go to the n-th op after this one, into modules, composite ops and the backward pass."""
        if n < 0:
            return self.reverse_step(-n)
        after = self._after() if n else self.op
        if after is None:
            return Stop("end", self.op, note="this is the last op recorded")
        if n > 1:
            return self.goto(index=self.index + n)
        self.op = after
        return Stop("step", after)

    def reverse_step(self, n: int = 1) -> Stop:
        """Go to the n-th op before this one."""
        if n < 0:
            return self.step(-n)
        before = self.trail.before(self.op.op_id) if n and self.op else self.op
        if before is None or self.op is None:
            return Stop("start", self.op, note="this is the first op recorded")
        if n > 1:
            return self.goto(index=self.index - n)
        self.op = before
        return Stop("step", before)

    def next(self) -> Stop:
        """Go to the next op at this depth: over what modules inside and composite ops call."""
        return self._travel(Beside.of(self.op)) if self.op else Stop("end", None)

    def reverse_next(self) -> Stop:
        """Go back to the op before at this depth."""
        return self._travel(Beside.of(self.op), back=True) if self.op else Stop("start", None)

    def finish(self) -> Stop:
        """Go to the first op after this composite op, or else this call of the module."""
        return self._travel(Beyond.of(self.op)) if self.op else Stop("end", None)

    def reverse_finish(self) -> Stop:
        """Go back to the composite op around this one, or else to before this module's call."""
        around = self.trail.op(self.op.parent_id) if self.op and self.op.parent_id >= 0 else None
        if around is not None:
            self.op = around
            return Stop("step", self.op)
        return self._travel(Beyond.of(self.op), back=True) if self.op else Stop("start", None)

    def resume(self) -> Stop:
        """Go on to the next breakpoint, watch or op that a finding names, or to the last op."""
        return self._travel(None)

    def reverse_resume(self) -> Stop:
        """Go back to the breakpoint, watch or op that a finding names before this one."""
        return self._travel(None, back=True)

    def find(self, predicate: Predicate, *, back: bool = False) -> Stop:
        """Go to the next (or previous) op that satisfies a condition; stay if there is none."""
        found = self._find(predicate, back=back)
        if not found.complete:
            return self._cancelled(found)
        if not found.op_ids:
            where = "before" if back else "after"
            return Stop("missing", self.op, note=f"no op {where} this one matches")
        return self._arrive("match", found.op_ids[0])

    def next_finding(self) -> Stop:
        """Go to the next op that a finding names."""
        return self._to_finding(self.findings.after(self.op_id), "after")

    def previous_finding(self) -> Stop:
        """Go to the op that a finding names before this one."""
        return self._to_finding(self.findings.before(self.op_id), "before")

    def next_training_step(self) -> Stop:
        """Go to the first op of the next training step."""
        return self._to_step(+1)

    def previous_training_step(self) -> Stop:
        """Go to the first op of this training step, or of the one before if already there."""
        return self._to_step(-1)

    def goto(
        self,
        *,
        op_id: int | None = None,
        index: int | None = None,
        step: int | None = None,
        mark: str | None = None,
    ) -> Stop:
        """Go to an op, a position among the ops, the first op of a training step, or a mark.

        A position outside of the trace goes to its first or last op. If there is no such op, step
        or mark, the cursor stays and the reason is ``"missing"``.
        """
        if mark is not None:
            return self.jump(mark)
        if op_id is not None:
            op = self.trail.op(op_id)
            missing = f"no op {op_id} was recorded"
        elif step is not None:
            op = self.trail.first(step)
            missing = f"no op of step {step} was recorded"
        else:
            place = max(0, min(index or 0, self.count - 1))
            op = self.trail.at(place)
            missing = "the trace holds no op"
        if op is None:
            return Stop("missing", self.op, note=missing)
        self.op = op
        if op_id is None and step is None and place != (index or 0):
            return Stop("start" if place == 0 else "end", op)
        return Stop("step", op)

    # Neighbours

    def ops(self, op_ids: Sequence[int]) -> list[Op]:
        """Return ops by their ids; ids that lie close together are read together."""
        return self.trail.ops(op_ids)

    def producers(self) -> list[Op | None]:
        """Return, for each input, the op that wrote it; ``None`` where none was recorded."""
        return [] if self.op is None else self.reader.producers(self.op.op_id, self.rank)

    def consumers(self, slot: int | None = None, limit: int = 64) -> list[Op]:
        """Return the ops that read what this op wrote, in this training step and the next.

        Only if none did, later ones are searched: a value is rarely read for long, and looking
        for its last reader would mean to look at the whole trace.

        Args:
            slot: which output; all of them if ``None``.
            limit: ops to return at most.
        """
        if self.op is None:
            return []
        values = {
            output.value_id
            for number, output in enumerate(self.op.outputs)
            if (slot is None or number == slot) and output.value_id >= 0
        }
        if not values:
            return []
        reads = Or(tuple(Reads(value) for value in sorted(values)))
        near = And((reads, Number("step", "<=", self.op.step + 1)))
        found = self._find(near, back=False, last_step=self.op.step + 1, limit=limit)
        if not found.op_ids and found.complete:
            found = self._find(reads, back=False, limit=limit)
        return self.ops(found.op_ids)

    def why(self) -> dict[str, Any] | None:
        """Return the finding of this op's non-finite values; ``None`` if all it touched is finite.

        It is the same object that ``tracelens why --json`` prints for a finding.
        """
        return None if self.op is None else self.findings.explain(self.op)

    # Marks

    def mark(self, name: str) -> None:
        """Remember this position under a name.

        Raises:
            ConfigError: the name is not one word, or the trace is empty.
        """
        if self.op is None:
            raise ConfigError("the trace holds no op to mark")
        self.marks.set(name, self.rank, self.op.op_id)

    def jump(self, name: str) -> Stop:
        """Go to a mark."""
        place = self.marks.get(name, self.rank)
        if place is None:
            known = ", ".join(self.marks.names(self.rank)) or "none are set"
            return Stop("missing", self.op, note=f"no mark is called {name!r} ({known})")
        return self.goto(op_id=place)

    # How moves are made

    def _travel(self, target: Predicate | None, *, back: bool = False) -> Stop:
        """Go to the nearest op of a target, or to what stops the way there.

        Without a target only breakpoints, findings and the ends of the trace stop.
        """
        if self.op is None:
            return Stop("start" if back else "end", None)
        until: int | None = None
        reason = "step"
        if target is not None:
            found = self._find(target, back=back)
            if not found.complete:
                return self._cancelled(found)
            until = found.op_ids[0] if found.op_ids else None
        elif self.stop_at_findings:
            near = self.findings.before if back else self.findings.after
            until, reason = near(self.op_id), "finding"
        stopped = self._stopped(until, back=back)
        if stopped is not None:
            return stopped
        if until is not None:
            return self._arrive(reason, until)
        if back:
            self.op = self.trail.first()
            return Stop("start", self.op, note="the first op recorded")
        self.goto(index=max(0, self.count - 1))
        return Stop("end", self.op, note="the last op recorded")

    def _stopped(self, until: int | None, *, back: bool) -> Stop | None:
        """Return the stop at the nearest breakpoint on the way, ``None`` if there is none."""
        predicate, place = self.breaks.predicate(), self.op_id
        while predicate is not None:
            found = self._find(predicate, back=back, start=place, until=until)
            if not found.complete:
                return self._cancelled(found)
            op = self.trail.op(found.op_ids[0]) if found.op_ids else None
            if op is None:
                return None
            for reached in self.breaks.at(op):
                if not reached.watch or self._has_turned(reached, op):
                    if reached.once:
                        self.breaks.remove(reached.number)
                    self.op = op
                    return Stop("watch" if reached.watch else "breakpoint", op, reached)
            place = op.op_id
        return None

    def _has_turned(self, watch: Breakpoint, op: Op) -> bool:
        """Whether the same operation did not satisfy the condition the time before."""
        found = self._find(SameSite(op), back=True, start=op.op_id)
        before = self.trail.op(found.op_ids[0]) if found.op_ids else None
        return before is None or not watch.filter.matches(before)

    def _find(
        self,
        predicate: Predicate,
        *,
        back: bool,
        start: int | None = None,
        until: int | None = None,
        last_step: int | None = None,
        limit: int = 1,
    ) -> Found:
        place = self.op_id if start is None else start
        return self.reader.find(
            predicate,
            rank=self.rank,
            after=None if back else place,
            before=place if back else None,
            until=until,
            last_step=last_step,
            limit=limit,
            progress=self.progress,
            cancelled=self.cancelled,
        )

    def _cancelled(self, found: Found) -> Stop:
        return Stop("cancelled", self.op, note=f"cancelled after {found.looked_at:,} ops")

    def _arrive(self, reason: str, op_id: int) -> Stop:
        op = self.trail.op(op_id)
        if op is None:
            return Stop("missing", self.op, note=f"op {op_id} is no longer recorded")
        self.op = op
        return Stop(reason, op)

    def _after(self) -> Op | None:
        """Return the op after this one; a live trace is looked at again at its end."""
        if self.op is None:
            return None
        op = self.trail.after(self.op.op_id)
        if op is None and self.reader.alive:
            self.refresh()
            op = self.trail.after(self.op.op_id)
        return op

    def _to_finding(self, op_id: int | None, where: str) -> Stop:
        if op_id is None:
            known = self.findings.op_ids()
            note = f"no finding {where} this op" if known else "the trace has no finding"
            return Stop("missing", self.op, note=note)
        return self._arrive("finding", op_id)

    def _to_step(self, direction: int) -> Stop:
        if self.op is None:
            return Stop("missing", None, note="the trace holds no op")
        step = self.op.step
        if direction < 0:
            first = self.trail.first(step)
            if first is not None and first.op_id < self.op.op_id:
                self.op = first
                return Stop("step", self.op)
        other = OtherStep(step, direction)
        stop = self.find(other, back=direction < 0)
        if stop.reason == "match" and stop.op is not None:
            # Forwards the nearest op of another step is its first, backwards its last.
            return Stop("step", stop.op) if direction > 0 else self.goto(step=stop.op.step)
        return Stop("end" if direction > 0 else "start", self.op, note="no further training step")
