"""TF1 graphs: what `Session.run` does is checked as it runs, with no change to the program.

A run of a kind that can make something bad fetches one vector more: the sums of what it fetches
and of the gradients and values it writes (`session_checks`). Where that shows a NaN or Inf, the
run is looked into in a copy of the graph (`session_replay`), its ops are written, and what it
handed to the program is reported. A run that trains is a step.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracelens.events import NO_ID, OpFlag
from tracelens.sinks import SinkFilter
from tracelens_tensorflow import session_checks as checks
from tracelens_tensorflow import session_sinks as sinks
from tracelens_tensorflow.session_copy import Look
from tracelens_tensorflow.session_full import FullRecords
from tracelens_tensorflow.session_held import is_bad
from tracelens_tensorflow.session_history import History, Run, kept_feeds
from tracelens_tensorflow.session_hooks import Hooks, RunIt, ours
from tracelens_tensorflow.session_plan import Plan, make_plan
from tracelens_tensorflow.session_records import Execution, Recorder, caller_keys
from tracelens_tensorflow.session_replay import Rerun, rerun
from tracelens_tensorflow.session_times import Timed

if TYPE_CHECKING:
    from tracelens.session import Session

MAX_REPLAYS = 16
"""Bad runs of a recording that are looked into."""

_PLANS = "_tracelens_session_plans"

_active: SessionWatch | None = None


def install(session: Session) -> Callable[[], None]:
    """Begin to watch TF1 sessions.

    Args:
        session: the recording.

    Returns:
        A function that ends it.
    """
    global _active
    watch = SessionWatch(session)
    hooks = Hooks(watch)
    hooks.install()
    _active = watch

    def uninstall() -> None:
        global _active
        _active = None
        hooks.remove()
        watch.finish()

    return uninstall


def take_scalars() -> dict[str, float]:
    """Return the scalars that the program fetched in the step that ends, by name."""
    return _active.take_scalars() if _active is not None else {}


class SessionWatch:
    """What is known of the TF1 sessions of one recording.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._histories: weakref.WeakKeyDictionary[Any, History] = weakref.WeakKeyDictionary()
        self._recorder = Recorder(session)
        self._full = FullRecords(session, self._recorder)
        self._filter = SinkFilter(session)
        self._lock = threading.RLock()
        self._scalars: dict[str, float] = {}
        self._noted: set[str] = set()
        self._running = 0
        self._runs = 0
        self._replays = 0

    def finish(self) -> None:
        """Take a last look at the variables of sessions that are open."""
        for session in list(self._histories):
            if not getattr(session, "_closed", True):
                self.closing(session)

    def closing(self, session: Any) -> None:
        """Take a last look at the variables of a session."""
        self._guarded(self._last_look, session)

    def take_scalars(self) -> dict[str, float]:
        """Return the scalars of the step that ends."""
        scalars, self._scalars = self._scalars, {}
        return scalars

    def tell_once(self, message: str, severity: str = "info") -> None:
        """Write a note, unless it was written before."""
        if message not in self._noted:
            self._noted.add(message)
            self._session.note("session", message, severity)

    # One run

    def watched(
        self, session: Any, targets: Sequence[Any], fetches: Sequence[Any], feeds: Any, run: RunIt
    ) -> list[Any]:
        """Run what the program asked for, with what is needed to check it.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and the run was bad.
        """
        plan = self._guarded(self._plan_of, session, targets, fetches, feeds)
        if plan is None or not plan.frontier:
            return run()
        history = self._guarded(self._before, session, plan)
        others = plan.other_floats() if self._full.wanted else None
        timed = Timed() if others is not None else None
        self._running += 1
        alone = self._running == 1
        try:
            values = run([*plan.extra, *(others or ())], timed)
        finally:
            self._running -= 1
        own = values[: len(fetches)]
        self._guarded(self._after, session, plan, history if alone else None, feeds, values, timed)
        if plan.is_step:
            self._session.auto_step("tensorflow")
        elif self._session.judge.pending:
            self._session.explain_pending()
        return own

    def _guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a part of ours: an error of it is a note, and the program goes on."""
        with ours():
            try:
                return function(*args)
            except Exception as error:
                self.tell_once(f"watching Session.run failed: {error!r}"[:500], "warning")
                return None

    def _plan_of(
        self, session: Any, targets: Sequence[Any], fetches: Sequence[Any], feeds: Any
    ) -> Plan:
        key = (
            tuple([id(each) for each in fetches]),
            tuple([id(each) for each in targets]),
            tuple([id(each.deref()) for each in feeds]),
        )
        owner, plans = getattr(session.graph, _PLANS, (None, {}))
        if owner is not self:
            # With their graph, not here: plans hold it, and it may be thrown away.
            plans = {}
            setattr(session.graph, _PLANS, (self, plans))
        plan: Plan | None = plans.get(key)
        if plan is None:
            with self._lock:
                plan = make_plan(session.graph, fetches, targets, [f.deref() for f in feeds])
                if plan.frontier:
                    checks.add_check(session, plan)
                plans[key] = plan
        return plan

    def _before(self, session: Any, plan: Plan) -> History | None:
        history = self._histories.get(session)
        if not plan.is_step:
            return history
        if history is None:
            history = self._histories[session] = History(checks.reader(session))
        if history.is_due(plan):
            kept, runs = history.variables, list(history.runs)
            history.keep(plan)
            if runs:
                self._look_at_variables(session, runs, kept, history.variables)
        history.begin()
        return history

    def _after(
        self,
        session: Any,
        plan: Plan,
        history: History | None,
        feeds: Any,
        values: Sequence[Any],
        timed: Timed | None,
    ) -> None:
        at = len(plan.fetches)
        own, extra, others = values[:at], values[at:][: len(plan.extra)], values[at:]
        others = others[len(plan.extra) :]
        fed = {each.deref().name: value for each, value in feeds.items()}
        given, remarks = kept_feeds(fed) if plan.is_step else (fed, [])
        sources = {t.name: a for t, a in zip(plan.sources, extra[plan.checked :], strict=True)}
        given.update(sources)
        if history is None and plan.is_step:
            remarks.append("other runs went on at the same time")
        run = Run(plan, given, self._session.current_step, self._runs, remarks)
        self._runs += 1
        fetched = {t.name: a for t, a in zip(plan.fetches, own, strict=True)}
        if plan.is_step:
            self._scalars = sinks.scalars(plan, own)
        ids = None
        if timed is not None:
            arrays = {**given, **fetched}
            ids = self._full.record(session, plan, arrays, others, timed, run.number)
        alarms = checks.alarms(plan, extra[: plan.checked])
        if not alarms:
            plan.bad_before = False
            if ids is None and plan.writes:
                self._recorder.forget(plan.variables)
        elif not plan.bad_before:
            plan.bad_before = True
            if not plan.packed:
                fetched.update(
                    (w.tensor.name, a) for w, a in zip(plan.frontier, extra, strict=False)
                )
            if ids is not None and plan.is_plain:
                found = sinks.of_arrays(plan, fetched, ids, alarms, run.step)
                self._filter.report(found)
            else:
                self._hit(session, run, history, fetched, alarms)
        if plan.writes and (kept := self._histories.get(session)) is not None:
            if history is None or not plan.is_step:
                kept.drop()
            else:
                history.after(run)

    # A bad run

    def _hit(
        self,
        session: Any,
        run: Run,
        history: History | None,
        fetched: Mapping[str, Any],
        alarms: list[int],
    ) -> None:
        """Look into a run that gave alarm, and report what is bad."""
        plan = run.plan
        earlier: Sequence[Run] = ()
        variables: Mapping[Any, Any] = {}
        if plan.is_step and history is not None:
            variables, earlier = history.variables, list(history.runs)
        elif not plan.writes:
            values = checks.reader(session)(plan.variables)
            variables = dict(zip(plan.variables, values, strict=True))
        outcome = self._rerun(session, run, earlier, variables)
        if outcome is None:
            return
        if outcome.reason:
            self._note_replay(outcome)
            found = sinks.of_arrays(plan, fetched, {}, alarms, run.step, outcome)
            self._filter.report(found)
            return
        *before, last = outcome.looks
        found = self._looked_into(before, outcome)
        ids = self._record(last)
        found += sinks.of_look(last, fetched, ids, alarms, run.step, outcome)
        if found:
            self._note_replay(outcome)
            self._filter.report(found)
        else:
            plan.false_alarms += 1
            plan.bad_before = False

    def _last_look(self, session: Any) -> None:
        history = self._histories.get(session)
        if history is not None and history.runs:
            self._look_at_variables(session, history.runs, history.variables, history.now())
            history.drop()

    def _look_at_variables(
        self,
        session: Any,
        runs: Sequence[Run],
        before: Mapping[Any, Any],
        after: Mapping[Any, Any],
    ) -> None:
        """Find the update that made a variable bad although no gradient was."""
        bad = [variable for variable, array in after.items() if is_bad(array)]
        known = any(is_bad(before.get(variable)) for variable in bad)
        if not bad or known or any(run.plan.bad_before for run in runs):
            return
        outcome = self._rerun(session, None, runs, before)
        if outcome is None:
            return
        self._note_replay(outcome)
        step = runs[-1].step
        found = self._looked_into(outcome.looks, outcome) or [
            sinks.sink("parameter", variable.name, after[variable], NO_ID, step, outcome)
            for variable in bad
        ]
        self._filter.report(found)

    def _rerun(
        self,
        session: Any,
        run: Run | None,
        earlier: Sequence[Run],
        variables: Mapping[Any, Any],
    ) -> Rerun | None:
        if self._replays >= MAX_REPLAYS:
            self.tell_once(f"only the first {MAX_REPLAYS} bad runs were looked into", "warning")
            return None
        self._replays += 1
        try:
            return rerun(session, run, earlier, variables)
        except Exception as error:
            return Rerun(reason=f"the copy of the graph failed: {_told(error)}")

    def _looked_into(self, looks: Sequence[Look], outcome: Rerun) -> list[sinks.Sink]:
        """Record runs that made variables bad, and return these as sinks."""
        found = []
        for look in looks:
            self._record(look)
            found += sinks.of_variables(look, self._recorder.variable_ids, outcome)
        return found

    def _record(self, look: Look) -> dict[str, int]:
        return self._recorder.record(
            Execution(
                look.run.plan,
                look.ran,
                look.values,
                look.before,
                look.after,
                look.run.step,
                in_loops=look.in_loops,
                looks_inside=True,
                flags=int(OpFlag.REPLAYED),
                source=caller_keys(),
                number=look.run.number,
            )
        )

    def _note_replay(self, outcome: Rerun) -> None:
        if outcome.reason:
            message = f"replay impossible: {outcome.reason}"
        else:
            runs = "1 run" if outcome.runs == 1 else f"{outcome.runs} runs"
            took = f"{outcome.duration_ns / 1e6:.0f} ms"
            message = f"Session.run was run again in a copy of the graph ({runs} in {took})"
        remarks = "".join(f"; {remark}" for remark in outcome.remarks)
        severity = "warning" if outcome.reason or outcome.remarks else "info"
        self._session.note("replay", message + remarks, severity)


def _told(error: Exception) -> str:
    """Return what an error says in one line; TensorFlow's begin with whole stacks."""
    text = re.split(r"\n *Original stack trace", str(error))[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("File ", "Graph execution", "Detected")
    plain = [line for line in lines if not line.startswith(noise)]
    return " ".join(plain[-2:])[:300] or type(error).__name__
