"""Judges each call of a traced function by its checks, and has a bad one replayed.

Nothing is said of a bad value that reaches no sink: it was masked. Checks that trip again and
again without harm are looked into more and more seldom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.sinks import SinkFilter
from tracelens_tensorflow import hits, native
from tracelens_tensorflow.slots import Slot, slots
from tracelens_tensorflow.twin import Part

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.calls import Call
    from tracelens_tensorflow.data import DataWatch
    from tracelens_tensorflow.replay import Outcome, Replayer
    from tracelens_tensorflow.scaling import ScalingWatch

MAX_REPLAYS = 16
"""Replays of failures in one session: more of them tell nothing new and cost time each."""

MAX_OVERFLOWS = 4
"""Overflows of a scaled loss that are replayed to see whether they are what they seem."""

_TOLD_ONCE = ("gradient", "parameter")


class Sentinel:
    """Takes the results of the checks after each call.

    Args:
        session: the recording.
        replayer: runs a bad call again.

    Attributes:
        hits: calls since the step began in which something was bad.
        scaling: knows of loss scaling; None if nobody does.
        data: knows the batches of `tf.data`; None if nobody does.
    """

    def __init__(self, session: Session, replayer: Replayer) -> None:
        self.hits = 0
        self.scaling: ScalingWatch | None = None
        self.data: DataWatch | None = None
        self._session = session
        self._replayer = replayer
        self._sinks = SinkFilter(session)
        self._checks: native.Checks | None = None
        self._replays = 0
        self._overflows = 0
        self._told: set[tuple[str, int]] = set()
        self._poisoned: set[bytes] = set()

    def use_ops(self) -> None:
        """TraceLens's own check op is in use: what it saw before does not count."""
        self._checks = native.checks()
        self._checks.take()
        self._replayer.drain = self._checks.take

    def renew(self) -> None:
        """A new window of the session begins: replays are affordable again."""
        self._replays = self._overflows = 0
        self._told.clear()
        self._poisoned.clear()

    def judge(self, call: Call, part: Part, flags: Any) -> None:
        """Look at the checks of a call that has run.

        Args:
            call: it.
            part: its twin.
            flags: its vector of sums, None if it has none.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and a bad value reached a sink.
        """
        tripped: list[int] = []
        if self._checks is not None and self._checks.pending:
            tripped = self._checks.take()
        if flags is not None:
            sums = np.asarray(flags)
            if not np.isfinite(sums).all():
                tripped += [part.vector[place] for place in np.flatnonzero(~np.isfinite(sums))]
        if tripped:
            self._tripped(call, part, [slots[number] for number in dict.fromkeys(tripped)])
            return
        if self._poisoned:
            self._poisoned.discard(call.function.name)
        if self._overflows and self.scaling is not None:
            self.scaling.went_well(part)

    def report(self, sinks: list[dict[str, Any]]) -> None:
        """Report sinks that were seen outside of traced functions.

        Eager code writes one variable after another: of those that go bad in one step the first
        is told.
        """
        news = []
        for sink in sinks:
            key = (sink["sink"], sink["step"])
            if sink["sink"] not in _TOLD_ONCE or key not in self._told:
                news.append(sink)
        self._told = {(sink["sink"], sink["step"]) for sink in sinks} | {
            key for key in self._told if key[1] >= self._session.current_step
        }
        self._sinks.report(news)

    def recorded(self, call: Call, part: Part, sinks: list[dict[str, Any]]) -> None:
        """Take the sinks of a call that was recorded op by op: no replay is needed.

        Args:
            call: it.
            part: its twin at guard level.
            sinks: fields of ``sink`` events.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and a bad value reached a sink.
        """
        name = call.function.name
        if not sinks:
            self._poisoned.discard(name)
            return
        if name in self._poisoned:
            return
        if self.scaling is not None and all(sink["sink"] == "gradient" for sink in sinks):
            scaler = self.scaling.scaler_of(part)
            if scaler is not None and self.scaling.handled(scaler, call.step, recorded=True):
                return
        if call.writes:
            self._poisoned.add(name)
        self._sinks.report(sinks)
        if self._session.config.nonfinite in ("raise", "break"):
            self._session.explain_pending()

    def _tripped(self, call: Call, part: Part, tripped: list[Slot]) -> None:
        self.hits += 1
        sinks = [slot for slot in tripped if slot.sink]
        name = call.function.name
        if not sinks:
            if _worth_a_look(tripped):
                self._look(call, part)
            return
        if name in self._poisoned:
            return  # What the last bad update left behind: told already.
        scaler = self.scaling.skipped(part, sinks) if self.scaling is not None else None
        outcome = None
        if scaler is not None:
            self._overflows += 1
            if self._overflows <= MAX_OVERFLOWS:
                outcome = self._replayer.replay(call, named_sinks(part))
            recorded = outcome is not None and outcome.ran
            if self.scaling is None or self.scaling.handled(scaler, call.step, recorded=recorded):
                return
        if outcome is None:
            if self._replays >= MAX_REPLAYS:
                return
            self._replays += 1
            outcome = self._replayer.replay(call, named_sinks(part))
        if call.writes:
            self._poisoned.add(name)
        self._report(call, sinks, outcome)

    def _look(self, call: Call, part: Part) -> None:
        """Replay a call whose bad values reached no sink, so that the trace has where they are."""
        outcome = self._replayer.replay(call, named_sinks(part))
        if outcome.ran and outcome.seen:
            self._report(call, [], outcome)

    def _report(self, call: Call, sinks: Sequence[Slot], outcome: Outcome) -> None:
        session = self._session
        if self.data is not None:
            self.data.tell(call)
        self._sinks.report(hits.sinks_of(call, sinks, outcome))
        session.note(
            "replay",
            f"{call.name}: {hits.describe(outcome)}",
            "info" if outcome.exact else "warning",
            call.step,
        )
        if session.config.nonfinite in ("raise", "break"):
            session.explain_pending()


def named_sinks(part: Part) -> dict[int, tuple[Any, str, str]]:
    """Return the sinks of a function and those it calls, by ``id`` of the graph's tensor."""
    found: dict[int, tuple[Any, str, str]] = {}
    for number in part.sinks:
        slot = slots[number]
        tensor = slot.tensor()
        if tensor is not None:
            found[id(tensor)] = (tensor, slot.sink, slot.name)
    return found


def _worth_a_look(tripped: Sequence[Slot]) -> bool:
    """Tell whether checks that tripped without harm are news: the 1st, 2nd, 4th, 8th ... time."""
    news = False
    for slot in tripped:
        slot.masked += 1
        news = news or slot.masked & (slot.masked - 1) == 0
    return news
