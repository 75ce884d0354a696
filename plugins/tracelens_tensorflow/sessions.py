"""TF1 graphs: what `Session.run` does is checked as it runs, with no change to the program.

`BaseSession._do_run` is wrapped while a session records: every `Session.run`, also those of
`MonitoredSession`, `Supervisor` and `InteractiveSession`, passes through it with its fetches
resolved. A run of a kind that can make something bad fetches one vector more, the sums of what
it fetches and writes. Where that shows a NaN or Inf, the run is looked into in a copy of the
graph (`session_replay`), its ops are written, and what it handed to the program is reported.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorflow.python.client import session as tf_session

from tracelens import stats
from tracelens.events import NO_ID, SLOT_BITS, OpFlag
from tracelens.judge import user_frame
from tracelens.sinks import SinkFilter
from tracelens_tensorflow import session_checks
from tracelens_tensorflow.session_history import History, Run, kept_feeds
from tracelens_tensorflow.session_plan import Plan, make_plan
from tracelens_tensorflow.session_records import Execution, Recorder, as_floats
from tracelens_tensorflow.session_replay import Look, Rerun, rerun

if TYPE_CHECKING:
    from tracelens.session import Session

MAX_REPLAYS = 16
"""Bad runs of a recording that are looked into."""

_Base = tf_session.BaseSession
_thread = threading.local()  # `busy` while the runs that pass through are ours
_active: SessionWatch | None = None


class SessionWatch:
    """The wrapping of TF1's sessions for one recording.

    Args:
        session: the recording.

    Attributes:
        runs: how many runs passed through.
        replays: how many were looked into.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._plans: weakref.WeakKeyDictionary[Any, dict[Any, Plan]] = weakref.WeakKeyDictionary()
        self._checks: weakref.WeakKeyDictionary[Any, session_checks.GraphChecks | None]
        self._checks = weakref.WeakKeyDictionary()
        self._histories: weakref.WeakKeyDictionary[Any, History] = weakref.WeakKeyDictionary()
        self._recorder = Recorder(session)
        self._filter = SinkFilter(session)
        self._lock = threading.RLock()
        self._scalars: dict[str, float] = {}
        self._noted: set[str] = set()
        self._original: dict[str, Any] = {}
        self._running = 0
        self.runs = 0
        self.replays = 0

    # Life

    def install(self) -> None:
        """Wrap the sessions."""
        watch = self
        do_run, make_callable = _Base._do_run, _Base.make_callable
        from_options, close = _Base._make_callable_from_options, _Base.close
        self._original = {
            "_do_run": do_run,
            "make_callable": make_callable,
            "_make_callable_from_options": from_options,
            "close": close,
        }

        def _do_run(
            self: Any, handle: Any, targets: Any, fetches: Any, feeds: Any, options: Any, meta: Any
        ) -> Any:
            def run(extra: Sequence[Any] = ()) -> list[Any]:
                wanted = [*fetches, *extra] if extra else fetches
                values: list[Any] = do_run(self, handle, targets, wanted, feeds, options, meta)
                return values

            if handle is not None:
                watch.tell_once("partial_run is not checked: its parts are no step of their own")
                return run()
            if getattr(_thread, "busy", False):
                return run()
            return watch.watched(self, targets, fetches, feeds, run)

        def made_callable(
            self: Any, fetches: Any, feed_list: Any = None, accept_options: bool = False
        ) -> Any:
            original = make_callable(self, fetches, feed_list, accept_options)
            if feed_list is not None:
                return original  # it calls run

            def call(*args: Any, **kwargs: Any) -> Any:
                if not watch._original:
                    return original(*args, **kwargs)
                return self.run(fetches, **kwargs)

            return call

        def _make_callable_from_options(self: Any, callable_options: Any) -> Any:
            watch.tell_once("callables made from CallableOptions are not checked")
            return from_options(self, callable_options)

        def closing(self: Any) -> None:
            watch._guarded(watch._ends, self)
            close(self)

        _Base._do_run = _do_run
        _Base.close = closing
        _Base.make_callable = made_callable
        _Base._make_callable_from_options = _make_callable_from_options

    def uninstall(self) -> None:
        """Take the wrapping off, after a last look at the variables."""
        for session in list(self._histories):
            if not getattr(session, "_closed", True):
                self._guarded(self._ends, session)
        for name, original in self._original.items():
            setattr(_Base, name, original)
        self._original = {}

    def take_scalars(self) -> dict[str, float]:
        """Return the scalars that the program fetched in the step that ends, by name."""
        scalars, self._scalars = self._scalars, {}
        return scalars

    def tell_once(self, message: str, severity: str = "info") -> None:
        """Write a note, unless it was written before."""
        if message not in self._noted:
            self._noted.add(message)
            self._session.note("session", message, severity)

    # One run

    def watched(
        self,
        session: Any,
        targets: Sequence[Any],
        fetches: Sequence[Any],
        feeds: Any,
        run: Callable[..., list[Any]],
    ) -> list[Any]:
        """Run what the program asked for, with what is needed to check it.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and the run was bad.
        """
        plan = self._guarded(self._plan_of, session, targets, fetches, feeds)
        if plan is None or not plan.frontier:
            return run()
        history = self._guarded(self._before, session, plan)
        self._running += 1
        alone = self._running == 1
        try:
            values = run(plan.extra)
        finally:
            self._running -= 1
        own, extra = values[: len(fetches)], values[len(fetches) :]
        self.runs += 1
        self._guarded(self._after, session, plan, history if alone else None, feeds, own, extra)
        if plan.is_step:
            self._session.auto_step()
        elif self._session.judge.pending:
            self._session.explain_pending()
        return own

    def _guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a part of ours: an error of it is a note, and the program goes on."""
        _thread.busy = True
        try:
            return function(*args)
        except Exception as error:
            self.tell_once(f"watching Session.run failed: {error!r}"[:500], "warning")
            return None
        finally:
            _thread.busy = False

    def _plan_of(
        self, session: Any, targets: Sequence[Any], fetches: Sequence[Any], feeds: Any
    ) -> Plan:
        key = (
            tuple([id(each) for each in fetches]),
            tuple([id(each) for each in targets]),
            tuple([id(each.deref()) for each in feeds]),
        )
        graph = session.graph
        plans = self._plans.get(graph)
        if plans is None:
            plans = self._plans[graph] = {}
        plan = plans.get(key)
        if plan is None:
            with self._lock:
                names = [each.deref().name for each in feeds]
                plan = make_plan(graph, fetches, targets, names)
                plan.fed_tensors = [each.deref() for each in feeds]
                if plan.frontier:
                    self._add_check(session, plan)
                plans[key] = plan
        return plan

    def _add_check(self, session: Any, plan: Plan) -> None:
        graph = plan.graph
        if _is_sealed(session):
            session_checks.fetch_as_is(plan)
        else:
            checks = self._checks.get(graph)
            if checks is None:
                checks = self._checks[graph] = session_checks.GraphChecks(graph)
            checks.add(plan)
        plan.extra = [*plan.extra, *plan.sources]

    def _before(self, session: Any, plan: Plan) -> History | None:
        history = self._histories.get(session)
        if not plan.is_step:
            return history
        if history is None:
            history = self._histories[session] = History(_reader(session))
        if history.is_due(plan):
            self._keep(session, history, plan)
        history.begin()
        return history

    def _keep(self, session: Any, history: History, plan: Plan) -> None:
        """Keep the variables anew; one that went bad since the last time is a finding."""
        kept, runs = history.variables, list(history.runs)
        history.keep(plan)
        if runs:
            self._look_at_variables(session, runs, kept, history.variables)

    def _ends(self, session: Any) -> None:
        """A session is about to be closed, or no longer watched."""
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
        bad = [variable for variable, array in after.items() if _bad(array)]
        if not bad or any(_bad(before.get(variable)) for variable in bad):
            return
        if any(run.plan.bad_before for run in runs) or self.replays >= MAX_REPLAYS:
            return
        self.replays += 1
        outcome = self._rerun(session, None, runs, before)
        self._note_replay(outcome)
        sinks = []
        for look in outcome.looks:
            self._record(look)
            sinks += self._bad_variables(look, outcome)
        if not sinks:
            sinks = [
                self._sink("parameter", variable.name, after[variable], NO_ID, outcome)
                for variable in bad
            ]
        self._filter.report(sinks)

    def _after(
        self,
        session: Any,
        plan: Plan,
        history: History | None,
        feeds: Any,
        own: Sequence[Any],
        extra: Sequence[Any],
    ) -> None:
        alarms = session_checks.alarms(plan, extra[: plan.checked])
        fed = {each.deref().name: value for each, value in feeds.items()}
        given, remarks = kept_feeds(fed) if plan.is_step else (fed, [])
        given.update(zip((t.name for t in plan.sources), extra[plan.checked :], strict=True))
        if history is None and plan.is_step:
            remarks.append("other runs went on at the same time")
        run = Run(plan, given, self._session.current_step, self.runs - 1, remarks)
        if plan.is_step:
            self._scalars = _scalars(plan, own)
        if not alarms:
            plan.bad_before = False
            self._recorder.forget(plan.variables if plan.writes else ())
        elif not plan.bad_before:
            self._hit(session, run, history, own, extra, alarms)
        if plan.writes and (kept := self._histories.get(session)) is not None:
            if history is None or not plan.is_step:
                kept.drop()
            else:
                history.after(run)

    def _hit(
        self,
        session: Any,
        run: Run,
        history: History | None,
        own: Sequence[Any],
        extra: Sequence[Any],
        alarms: list[int],
    ) -> None:
        plan = run.plan
        plan.bad_before = True
        if self.replays >= MAX_REPLAYS:
            self.tell_once(f"only the first {MAX_REPLAYS} bad runs were looked into", "warning")
            return
        self.replays += 1
        earlier: Sequence[Run] = ()
        variables: Mapping[Any, Any] = {}
        if plan.is_step and history is not None:
            variables, earlier = history.variables, list(history.runs)
        elif not plan.writes:
            values = _reader(session)(plan.variables)
            variables = dict(zip(plan.variables, values, strict=True))
        outcome = self._rerun(session, run, earlier, variables)
        if outcome.reason:
            self._note_replay(outcome)
            self._filter.report(self._sinks_of_run(plan, own, extra, alarms, outcome))
            return
        *before, last = outcome.looks
        sinks = []
        for look in before:
            self._record(look)
            sinks += self._bad_variables(look, outcome)
        ids = self._record(last)
        sinks += self._sinks_of_rerun(plan, own, outcome, last, ids, alarms)
        if not sinks:
            plan.false_alarms += 1
            plan.bad_before = False
            return
        self._note_replay(outcome)
        self._filter.report(sinks)

    def _rerun(
        self,
        session: Any,
        run: Run | None,
        earlier: Sequence[Run],
        variables: Mapping[Any, Any],
    ) -> Rerun:
        try:
            return rerun(session, run, earlier, variables)
        except Exception as error:
            return Rerun(reason=f"the copy of the graph failed: {_told(error)}")

    def _record(self, look: Look) -> dict[str, int]:
        return self._recorder.record(
            Execution(
                look.run.plan,
                look.ran,
                look.values,
                look.before,
                look.after,
                look.run.step,
                flags=int(OpFlag.REPLAYED),
                source=_site_of_caller(),
                number=look.run.number,
            )
        )

    def _bad_variables(self, look: Look, outcome: Rerun) -> list[dict[str, Any]]:
        """Return the sinks of the variables that a run made bad, just after it was recorded."""
        ids = self._recorder.variable_ids
        return [
            self._sink(
                "parameter", variable.name, array, ids.get(variable, NO_ID), outcome, look.run.step
            )
            for variable, array in look.after.items()
            if _bad(array) and not _bad(look.before.get(variable))
        ]

    def _note_replay(self, outcome: Rerun) -> None:
        if outcome.reason:
            message = f"replay impossible: {outcome.reason}"
        else:
            message = (
                f"Session.run was run again in a copy of the graph ({outcome.runs} runs in "
                f"{outcome.duration_ns / 1e6:.0f} ms)"
            )
        remarks = "".join(f"; {remark}" for remark in outcome.remarks)
        severity = "warning" if outcome.reason or outcome.remarks else "info"
        self._session.note("replay", message + remarks, severity)

    def _sinks_of_rerun(
        self,
        plan: Plan,
        own: Sequence[Any],
        outcome: Rerun,
        look: Look,
        ids: dict[str, int],
        alarms: list[int],
    ) -> list[dict[str, Any]]:
        fetched = {tensor.name: value for tensor, value in zip(plan.fetches, own, strict=True)}
        sinks = []
        for place in alarms:
            watched = plan.frontier[place]
            name = watched.tensor.name
            array, value_id = look.values.get(name), ids.get(name, NO_ID)
            if _bad(array):
                sinks.append(self._sink(watched.sink, watched.name, array, value_id, outcome))
            elif _bad(fetched.get(name)):
                unlike = replace(
                    outcome,
                    remarks=["running it again gave a finite value", *outcome.remarks],
                )
                sinks.append(self._sink(watched.sink, watched.name, fetched[name], NO_ID, unlike))
        return sinks

    def _sinks_of_run(
        self,
        plan: Plan,
        own: Sequence[Any],
        extra: Sequence[Any],
        alarms: list[int],
        outcome: Rerun,
    ) -> list[dict[str, Any]]:
        """Return the sinks of a run that could not be looked into: what is known without."""
        fetched = {tensor.name: value for tensor, value in zip(plan.fetches, own, strict=True)}
        sinks = []
        for place in alarms:
            watched = plan.frontier[place]
            array = extra[place] if not plan.packed else fetched.get(watched.tensor.name)
            sinks.append(self._sink(watched.sink, watched.name, array, NO_ID, outcome))
        return sinks

    def _sink(
        self,
        kind: str,
        name: str,
        array: Any,
        value_id: int,
        outcome: Rerun,
        step: int | None = None,
    ) -> dict[str, Any]:
        doubts = list(outcome.remarks)
        if outcome.reason:
            doubts.insert(0, f"the run could not be looked into: {outcome.reason}")
        fields: dict[str, Any] = {
            "sink": kind,
            "name": name,
            "step": self._session.current_step if step is None else step,
            "op_id": value_id >> SLOT_BITS if value_id >= 0 else NO_ID,
            "value_id": value_id,
            **_described(array),
        }
        if doubts:
            fields["doubts"] = doubts
        return fields


def install(session: Session) -> Callable[[], None]:
    """Begin to watch TF1 sessions.

    Args:
        session: the recording.

    Returns:
        A function that ends it.
    """
    global _active
    watch = _active = SessionWatch(session)
    watch.install()

    def uninstall() -> None:
        global _active
        _active = None
        watch.uninstall()

    return uninstall


def take_scalars() -> dict[str, float]:
    """Return the scalars that the program fetched in the step that ends, by name."""
    return _active.take_scalars() if _active is not None else {}


def _is_sealed(session: Any) -> bool:
    """Tell whether nothing can be added to what a session runs."""
    config = session._config
    experimental = getattr(config, "experimental", None)
    fixed = bool(getattr(experimental, "optimize_for_static_graph", False))
    return fixed or (session.graph.finalized and not hasattr(session.graph, "_unsafe_unfinalize"))


def _reader(session: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """Return what reads variables of the program's session, without keeping it alive."""
    reference = weakref.ref(session)

    def read(variables: Sequence[Any]) -> list[Any]:
        alive = reference()
        if alive is None or not variables:
            return []
        tensors = [session_checks.value_tensor(alive.graph, variable) for variable in variables]
        arrays = alive.run(tensors)
        # A reference variable's array is the variable's own memory.
        shared = [variable.type != "VarHandleOp" for variable in variables]
        return [np.array(a) if own else a for a, own in zip(arrays, shared, strict=True)]

    return read


def _told(error: Exception) -> str:
    """Return what an error says in one line; TensorFlow's begin with whole stacks."""
    text = re.split(r"\n *Original stack trace", str(error))[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    plain = [
        line for line in lines if not line.startswith(("File ", "Graph execution", "Detected"))
    ]
    return " ".join(plain[-2:])[:300] or type(error).__name__


def _site_of_caller() -> dict[str, Any]:
    frame = user_frame()
    if frame is None:
        return {}
    import linecache

    code, line = frame.f_code, frame.f_lineno
    return {
        "file": code.co_filename,
        "line": line,
        "function": code.co_qualname if hasattr(code, "co_qualname") else code.co_name,
        "code": linecache.getline(code.co_filename, line).strip(),
    }


def _bad(array: Any) -> bool:
    floats = as_floats(array)
    return floats is not None and stats.check(floats) == 1


def _described(array: Any) -> dict[str, Any]:
    floats = as_floats(array)
    found = stats.measure(floats) if floats is not None else None
    if found is None:
        return {}
    return {
        "dtype": np.asarray(array).dtype.name,
        "shape": list(np.shape(array)),
        "stats": {
            "numel": found.numel,
            "nan": found.nan,
            "posinf": found.posinf,
            "neginf": found.neginf,
            "vmin": found.vmin,
            "vmax": found.vmax,
        },
        "first_bad": list(stats.first_bad(floats)),
    }


def _scalars(plan: Plan, own: Sequence[Any]) -> dict[str, float]:
    """Return the scalars that a step fetched, the first loss under ``loss``."""
    found: dict[str, float] = {}
    losses = {watched.tensor.name for watched in plan.frontier if watched.sink == "loss"}
    for tensor, value in zip(plan.fetches, own, strict=True):
        floats = as_floats(value)
        if floats is None or floats.size != 1:
            continue
        name = "loss" if tensor.name in losses and "loss" not in found else tensor.op.name
        found[name] = float(floats.reshape(()))
    return found
