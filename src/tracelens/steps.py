"""Which ops make up a training step, and what is written about it.

A step is marked in one of three ways, the strongest seen wins: ``session.step()``, a call of a
decorated function, an optimizer step that a backend saw. A step that has ended stays open for
its scalars until the next one begins, so ``session.step(loss=loss)`` after a decorated call
names the same step and not a second one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.session import Session

Event = dict[str, Any]

HELD_NS = 20_000_000
"""Ended steps are written together once the first of them is this old: a system call in the
middle of a step costs far more than its own time. A killed process may lose that much of them;
their ops are in the ring."""


_TOLD_EVERY = 256


class Mark(IntEnum):
    """What ends a step, weakest first."""

    NONE = 0
    AUTO = 1
    CALL = 2
    EXPLICIT = 3


@dataclass
class _Aside:
    """What the program does beside its steps.

    Attributes:
        what: one word for reports.
        started_ns: when it began.
        first_op_id: id of the first op in it.
    """

    what: str
    started_ns: int
    first_op_id: int


class Steps:
    """The step clock of one session.

    Attributes:
        current: number of the running (or last ended) step, from 0.
        running: a step has begun and not ended.
        hits: ops with a non-finite output in the steps that have ended.

    Args:
        session: the recording.
        first: number of its first step.
    """

    def __init__(self, session: Session, first: int = 0) -> None:
        self._session = session
        self.current = first
        self.hits = 0
        self.running = False
        self._mark = Mark.NONE
        self._depth = 0
        self._pace: str | None = None
        self._last_source: str | None = None
        self._started_ns = 0
        self._first_op_id = 0
        self._ended: Event | None = None
        self._waiting: Event | None = None
        self._held: list[Event] = []
        self._aside: _Aside | None = None
        self._told: Event = {}

    def begin(self) -> None:
        """Begin the current step."""
        session = self._session
        self.running = True
        self._started_ns = session.writer.now_ns()
        self._first_op_id = session.writer.reserve_op_id()
        session.observers.begin_step(self.current)

    def start_at(self, step: int, *, marked: bool = True) -> None:
        """The running step has this number.

        Args:
            step: a number behind the running one's is not taken: numbers only grow.
            marked: every step is marked with `mark` from now on; backends mark none.
        """
        if marked:
            self._mark = Mark.EXPLICIT
        if step > self.current:
            self.current = step
            if self.running:
                self._session.observers.begin_step(step)

    @property
    def aside(self) -> str:
        """What the program does beside its steps now (``"validation"``); empty in a step."""
        return self._aside.what if self._aside is not None else ""

    def begin_aside(self, what: str) -> bool:
        """What follows is no part of the running step; False if an aside has begun already.

        Args:
            what: one word for reports.
        """
        if self._aside is not None:
            return False
        self._tell_so_far()
        writer = self._session.writer
        self._aside = _Aside(what, writer.now_ns(), writer.reserve_op_id())
        return True

    def end_aside(self) -> None:
        """The running step goes on; neither the time nor the ops of the aside are its own."""
        aside = self._aside
        if aside is None:
            return
        told, self._told = self._told, {}
        self._tell_so_far()
        self._told = told
        self._aside = None
        writer = self._session.writer
        self._started_ns += writer.now_ns() - aside.started_ns
        # The id that was asked for when it began is not one of the step's ops either.
        self._first_op_id += writer.reserve_op_id() - aside.first_op_id + 1

    def next_unwritten(self) -> None:
        """What follows has the next number; nothing is written of it, and no step ends.

        Now and then backends tell what they have seen, so that they do not collect it for ever.
        """
        self._mark = Mark.EXPLICIT
        if self.current % _TOLD_EVERY == _TOLD_EVERY - 1:
            self._tell_so_far()
            self._told = {}
        self.current += 1
        self._session.observers.begin_step(self.current)

    def drop_running(self) -> None:
        """What happened since the last step was marked is no step."""
        if self.running:
            self._tell_so_far()
            self.running = False

    def add_late(self, scalars: dict[str, Any]) -> None:
        """Keep numbers beside the step that ended last, which may be written already.

        Args:
            scalars: numbers or one-element tensors.
        """
        values = self._kept(scalars)
        late = self._ended or self._waiting or (self._held[-1] if self._held else None)
        if late is not None:
            late["scalars"].update(values)
        elif self.current > 0 and values:
            late = {"step": self.current - self.running, "scalars": values}
            self._session.writer.event("scalars", **self._with_numbers(late))

    def restart_clock(self) -> None:
        """Let the running step begin now, if nothing has happened in it yet."""
        if not self.running:
            return
        op_id = self._session.writer.reserve_op_id()
        if op_id == self._first_op_id + 1:
            self._started_ns = self._session.writer.now_ns()
        # Either way the id that was asked for is not one of the step's ops.
        self._first_op_id += 1

    def mark(self, scalars: dict[str, Any]) -> None:
        """The user marks the end of a step."""
        values = self._kept(scalars)
        named_by_optimizer = self._mark is Mark.AUTO and self._ended is not None
        self._mark = Mark.EXPLICIT
        if named_by_optimizer:
            # The optimizer's step ended this step a moment ago and began the next one.
            self._add(values)
            self._commit()
        else:
            self._end()
            self._add(values)
            self._commit()
            if not self._depth:
                self._begin_next()

    def auto(self, source: str = "") -> None:
        """An optimizer stepped: the end of a step, unless the user marks steps.

        Where two frameworks take turns, the first of them sets the pace.

        Args:
            source: the framework.
        """
        if self._mark > Mark.AUTO or self._depth:
            return
        again, self._last_source = source == self._last_source, source
        if self._pace is None or again:
            self._pace = source
        if source != self._pace:
            return
        self._mark = Mark.AUTO
        self._commit()
        self._end()
        self._begin_next()

    def enter_call(self) -> None:
        """A decorated function is called."""
        self._depth += 1
        if self._depth > 1 or self._mark is Mark.EXPLICIT:
            return
        self._mark = Mark.CALL
        if not self.running:
            self._commit()
            self._begin_next()

    def leave_call(self) -> bool:
        """A decorated function returned or raised; return whether that ended a step."""
        self._depth = max(0, self._depth - 1)
        if self._depth or self._mark is Mark.EXPLICIT:
            return False
        self._end()
        return True

    def finish(self) -> None:
        """The session ends: so does the last step, if anything happened in it."""
        if self.running:
            if self._mark is Mark.AUTO:
                self._commit()
            self._end(unless_empty=self._mark is not Mark.NONE)
        self._commit()
        self._write_waiting()
        self.flush()

    def flush(self) -> None:
        """Write the ended steps that are held back."""
        held, self._held = self._held, []
        for event in held:
            self._write(event)

    def _begin_next(self) -> None:
        self.current += 1
        self.begin()

    def _end(self, *, unless_empty: bool = False) -> None:
        """End the running step; one that already ended is judged again, for what came after."""
        session = self._session
        scalars = session.observers.end_step(self.current)
        session.judge.explain()
        if not self.running:
            return
        self.running = False
        told, self._told = self._told, {}
        scalars = {**told, **scalars, "hits": told.get("hits", 0) + scalars.get("hits", 0)}
        n_ops = session.writer.reserve_op_id() - self._first_op_id - 1
        hits = int(scalars.pop("hits", 0))
        self.hits += hits
        if unless_empty and n_ops <= 0:
            return
        if hits:
            session.judge.keep_masked(self.current)
        self._ended = {
            "step": self.current,
            "start_ns": self._started_ns,
            "duration_ns": session.writer.now_ns() - self._started_ns,
            "n_ops": n_ops,
            "hits": hits,
            "scalars": scalars,
        }
        if session.config.profile and not session.config.is_active(self.current):
            self._ended["profiled"] = False
        session.observers.after_step(self.current)

    def _tell_so_far(self) -> None:
        """Let backends tell what they have seen, as if the step ended here; it goes on."""
        session = self._session
        told = session.observers.end_step(self.current)
        session.judge.explain()
        if told.get("hits"):
            session.judge.keep_masked(self.current)
        if self.running:
            self._told = told
            session.observers.begin_step(self.current)

    def was_not_profiled(self) -> None:
        """Tell, after a step has ended, that its profile is not whole: it counts in no figure."""
        if self._ended is not None:
            self._ended["profiled"] = False

    def _add(self, scalars: dict[str, Any]) -> None:
        if self._ended is not None:
            self._ended["scalars"].update(scalars)

    def _commit(self) -> None:
        """Write the step that ended, or let it wait for scalars that are still on a device."""
        self._write_waiting()
        if self._ended is not None:
            event, self._ended = self._ended, None
            if any(_is_on_device(value) for value in event["scalars"].values()):
                self._waiting = event
            else:
                self._hold(event)

    def _write_waiting(self) -> None:
        if self._waiting is not None:
            event, self._waiting = self._waiting, None
            self._hold(event)

    def _hold(self, event: Event) -> None:
        self._held.append(event)
        first: int = self._held[0]["start_ns"]
        if event["start_ns"] + event["duration_ns"] - first >= HELD_NS:
            self.flush()

    def _write(self, event: Event) -> None:
        self._session.event("step", **self._with_numbers(event))

    def _with_numbers(self, event: Event) -> Event:
        number = self._session.observers.number
        scalars = {name: number(value, name) for name, value in event["scalars"].items()}
        event["scalars"] = {name: value for name, value in scalars.items() if value is not None}
        return event

    def _kept(self, scalars: dict[str, Any]) -> dict[str, Any]:
        """Return scalars as numbers, those on a device as tensors without their graph.

        Reading a device's value now would make the program wait; a step later it is there.
        """
        number = self._session.observers.number
        return {
            name: value.detach() if _is_on_device(value) else number(value, name)
            for name, value in scalars.items()
            if value is not None
        }


def _is_on_device(value: Any) -> bool:
    kind = getattr(getattr(value, "device", None), "type", "cpu")
    return kind != "cpu" and hasattr(value, "detach")
