"""Runs a bad call again from kept state, op by op, with every op recorded.

The variables are set to what they were at the last snapshot, the calls since are repeated, and
the bad one is interpreted with all its outputs looked at. Batches and random numbers are those of
the first run; prints, summaries and Python functions are left out. Afterwards every variable
holds again what it held, so the program goes on as if nothing had happened.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import TYPE_CHECKING, Any

from tracelens.events import NO_ID, OpFlag
from tracelens_tensorflow import fdef, tensors
from tracelens_tensorflow.compare import Comparison, compare
from tracelens_tensorflow.effects import Effects, effects_of, remarks_on
from tracelens_tensorflow.interpreter import Interpreter, NotInterpretable
from tracelens_tensorflow.snapshots import Entry, History, Values
from tracelens_tensorflow.tracing import Tracer

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.calls import Call
    from tracelens_tensorflow.recording import Recorder

_KNOWN = "_tracelens_known"

Named = Mapping[int, tuple[Any, str, str]]
"""By ``id`` of a graph's tensor: itself, the kind of sink it is, its name."""


@dataclass
class Seen:
    """A bad value of the second run.

    Attributes:
        sink: kind of sink.
        name: its name.
        tensor: the eager tensor.
        value_id: its value, -1 unknown.
    """

    sink: str
    name: str
    tensor: Any
    value_id: int = NO_ID


@dataclass
class Outcome:
    """What came of a replay.

    Attributes:
        step: step of the call that was recorded.
        ran: the call was run again to its end.
        reason: why it was not; empty if it was.
        remarks: what a reader must know to trust it, one clause each.
        repeated: calls that were run again before it.
        n_ops: ops that were interpreted.
        compared: outputs and variables compared with those of the first run.
        equal: those that were equal bit for bit.
        close: those that were not, but finite and non-finite at the same places and near.
        seen: bad values that reached a sink.
        values: value id by ``id`` of a named graph tensor.
        duration_ns: how long it took.
    """

    step: int = NO_ID
    ran: bool = False
    reason: str = ""
    remarks: list[str] = field(default_factory=list)
    repeated: int = 0
    n_ops: int = 0
    compared: int = 0
    equal: int = 0
    close: int = 0
    seen: list[Seen] = field(default_factory=list)
    values: dict[int, int] = field(default_factory=dict)
    duration_ns: int = 0

    @property
    def exact(self) -> bool:
        """Whether everything came out as in the first run, but for its last digits."""
        return self.ran and not self.remarks and self.equal + self.close == self.compared


@dataclass
class _Known:
    """What a function's calls have in common.

    Attributes:
        effects: of the graph, ``None`` if it cannot be run op by op.
        reason: why it cannot.
        written: places of the arguments that are handles of variables it writes.
        read: of those that it only reads.
        data: of those that hold values.
        used: the handles of the last call, as the history knows them.
        generation: when the history was told of them.
    """

    effects: Effects | None
    reason: str
    written: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    data: tuple[int, ...] = ()
    used: list[Any] = field(default_factory=list)
    generation: int = -1


class Replayer:
    """Keeps what calls need to be run again, and runs a bad one again.

    Args:
        session: the recording.
        recorder: writes the ops.

    Attributes:
        history: the calls since the last snapshot.
        active: whether a replay runs now: hooks must keep out.
        drain: throws away what checks in repeated calls have found.
    """

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self.history = History()
        self.active = False
        self.drain: Callable[[], Any] | None = None
        self._session = session
        self._recorder = recorder

    def before_call(self, call: Call) -> None:
        """A function is about to run: keep its arguments, and now and then the variables."""
        known = self._of(call)
        if known.effects is None:
            return
        history, args = self.history, call.args
        used = [args[place] for place in known.written + known.read]
        if known.generation != history.generation or not all(map(is_, used, known.used)):
            count = len(known.written)
            history.uses(used[:count], used[count:])
            known.used, known.generation = used, history.generation
        history.before(call, [args[place] for place in known.data])

    def after_call(self, call: Call) -> None:
        """It ran, or raised."""
        self.history.after(call, wrote=bool(self._of(call).written))

    def replay(self, call: Call, named: Named, suspects: int | None = None) -> Outcome:
        """Run a call again, recorded.

        Args:
            call: one that was kept, as a rule the last.
            named: sinks in its graph and the graphs it runs.
            suspects: how many calls, this one included, were not seen to be clean: the first of
                them that made a variable bad is recorded in its place. ``None`` for all kept.

        Returns:
            What came of it. Variables are as before.
        """
        outcome = Outcome(step=call.step)
        started = time.perf_counter_ns()
        self.active = True
        try:
            self._replay(call, named, suspects, outcome)
        except NotInterpretable as stopped:
            outcome.ran, outcome.reason = False, str(stopped)
        except Exception as error:
            outcome.ran = False
            line = (str(error).splitlines() or [""])[0][:300]
            outcome.reason = f"the second run failed: {type(error).__name__}: {line}"
        finally:
            self.active = False
            self._recorder.flags = 0
            if self.drain is not None:
                self.drain()
        outcome.duration_ns = time.perf_counter_ns() - started
        return outcome

    def _of(self, call: Call) -> _Known:
        # Kept with the function, so that it goes when the function goes.
        known = call.function.__dict__.get(_KNOWN)
        if known is None:
            known = call.function.__dict__[_KNOWN] = _survey(call)
        return known

    def _replay(self, call: Call, named: Named, suspects: int | None, outcome: Outcome) -> None:
        if self._of(call).effects is None:
            raise NotInterpretable(self._of(call).reason)
        history = self.history
        entries = history.until(call)
        if history.dropped:
            outcome.remarks.append(f"it began with the present variables: {history.dropped}")
        handles = {handle._id: handle for handle in history.handles}
        for entry in entries:
            handles.update((handle._id, handle) for handle, _ in entry.patches)
        now = Values(handles.values())
        try:
            if history.values is not None:
                history.values.restore()
            entry = self._approach(entries, suspects or len(entries), outcome)
            known = self._of(entry.call)
            assert known.effects is not None
            with self._recorder.from_before():
                results, tracer = self._record(entry, known.effects, named, outcome)
                after = Values(entry.call.args[place] for place in known.written)
                self._see(entry.call, known, named, results, tracer, outcome)
        finally:
            now.restore()
        found = compare(entry.call.result or (), results)
        if entry.call is history.latest:
            found += compare([now.of(handle) for handle, _ in after], [value for _, value in after])
        _tell(found, outcome)

    def _approach(self, entries: list[Entry], suspects: int, outcome: Outcome) -> Entry:
        """Repeat the calls before the bad one; return the one to record."""
        first = len(entries) - suspects
        handles = self.history.handles
        good = [handle for handle in handles if not tensors.is_bad(handle)]
        for place, entry in enumerate(entries[:-1]):
            outcome.repeated = place
            before = Values(handles) if place >= first else None
            self._repeat(entry, outcome)
            if before is not None and any(map(tensors.is_bad, good)):
                before.restore()
                outcome.step = entry.call.step
                return entry
        outcome.repeated = len(entries) - 1
        return entries[-1]

    def _repeat(self, entry: Entry, outcome: Outcome) -> None:
        """Make an earlier call again: as it was made if it only uses variables."""
        entry.apply()
        call = entry.call
        effects = self._of(call).effects
        assert effects is not None
        if effects.repeatable and call.again is not None:
            call.again()
            return
        overrides = _given(call, effects, outcome)
        Interpreter(None, overrides, skip=frozenset(effects.skip)).run(
            call.graph, call.args, _n_outputs(call)
        )

    def _record(
        self, entry: Entry, effects: Effects, named: Named, outcome: Outcome
    ) -> tuple[list[Any], Tracer]:
        entry.apply()
        call = entry.call
        recorder = self._recorder
        recorder.flags = int(OpFlag.REPLAYED)
        recorder.register_parameters(_trainable(call))
        tracer = Tracer(recorder, {key: sink[0] for key, sink in named.items()})
        tracer.begin(call.graph, call.args)
        overrides = _given(call, effects, outcome)
        interpreter = Interpreter(tracer.on_op, overrides, skip=frozenset(effects.skip))
        results = interpreter.run(call.graph, call.args, _n_outputs(call))
        outcome.ran = True
        outcome.n_ops = tracer.n_ops
        if not fdef.is_true(call.function.cached_definition.attr, "_XlaMustCompile"):
            outcome.remarks += tracer.remarks
        return results, tracer

    def _see(
        self, call: Call, known: _Known, named: Named, results: Sequence[Any], tracer: Tracer,
        outcome: Outcome,
    ) -> None:  # fmt: skip
        """Take down what went bad where it matters, while the run's values are there."""
        outcome.values = tracer.value_ids
        for key, (_, sink, name) in named.items():
            if tracer.bad(key):
                value = tracer.values[key]
                outcome.seen.append(Seen(sink, name, value, tracer.value_ids[key]))
        names = names_of_variables(call)
        for place in known.written:
            handle = call.args[place]
            if tensors.is_bad(handle):
                value = tensors.seen(handle)
                name = names.get(handle._id, "a variable")
                outcome.seen.append(Seen("parameter", name, value, tracer.value_id(handle)))
        if not outcome.seen:
            for place, value in enumerate(results):
                if tensors.is_bad(value):
                    name = f"output {place}" if len(results) > 1 else "output"
                    outcome.seen.append(Seen("output", name, value, tracer.value_id(value)))


def names_of_variables(call: Call) -> dict[int, str]:
    """Return the names of the variables a call uses, by ``_id`` of their handles."""
    from tracelens_tensorflow.variables import name_of

    return {v.handle._id: name_of(v) for v in _variables(call.graph)}


def _trainable(call: Call) -> list[Any]:
    return [v.handle for v in _variables(call.graph) if v.trainable]


def _variables(graph: Any) -> list[Any]:
    try:
        found = list(graph.variables)
    except Exception:  # A variable that the graph used is gone.
        return []
    return [v for v in found if hasattr(getattr(v, "handle", None), "_id")]


def _n_outputs(call: Call) -> int:
    return len(call.function.function_type.flat_outputs)


def _survey(call: Call) -> _Known:
    try:
        effects = effects_of(call.graph)
    except Exception as error:
        reason = str(error) if isinstance(error, NotInterpretable) else repr(error)
        return _Known(None, reason)
    written = tuple(place for place in sorted(effects.writes) if place < len(call.args))
    only_read = effects.reads - effects.writes
    read = tuple(place for place in sorted(only_read) if place < len(call.args))
    data = tuple(
        place
        for place, tensor in enumerate(call.args)
        if tensor._datatype_enum() not in (tensors.RESOURCE, tensors.VARIANT)
    )
    return _Known(effects, "", written, read, data)


def _given(call: Call, effects: Effects, outcome: Outcome) -> dict[Any, Any]:
    """Return the kept outputs of ops that a second run must not compute."""
    kept = {
        op: functools.partial(next, iter(call.kept[op]), None)
        for op in (*effects.keep, *effects.lost)
        if op in call.kept
    }
    for remark in remarks_on(effects, kept):
        if remark not in outcome.remarks:
            outcome.remarks.append(remark)
    return kept


def _tell(found: Comparison, outcome: Outcome) -> None:
    outcome.compared, outcome.equal, outcome.close = found.compared, found.equal, found.close
    different = found.compared - found.equal - found.close
    if different:
        outcome.remarks.append(
            f"{different} of {found.compared} results of the second run were others than the "
            f"first run's"
        )
