"""Runs a call op by op and records each op: where no probe can go."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tracelens.analysis.live import RingOps
from tracelens.events import NO_ID, SLOT_BITS, OpFlag, Phase
from tracelens_tensorflow import facts, optables, tensors
from tracelens_tensorflow.checking import sinks_of
from tracelens_tensorflow.fastrecords import FastRecords
from tracelens_tensorflow.fdef import Editor
from tracelens_tensorflow.hits import sink_fields
from tracelens_tensorflow.interpreter import Interpreter
from tracelens_tensorflow.recording import DATA, GARBAGE, VIEWS
from tracelens_tensorflow.tensors import RESOURCE

if TYPE_CHECKING:
    import tensorflow as tf

    from tracelens.session import Session
    from tracelens_tensorflow.calls import Call
    from tracelens_tensorflow.recording import Recorder
    from tracelens_tensorflow.tensorslevel import Places, ValueCapture

OnOp = Callable[["tf.Operation", Sequence[Any]], None]


_MAX_RUNS = 1 << 16


class _Known(NamedTuple):
    """What all runs of an op have in common."""

    kind: str
    site: int
    phase: int
    flags: int
    forward: Any
    view: bool
    writes: bool
    constant: bool


class ByOp:
    """Records the calls that are run op by op.

    Args:
        session: the recording.
        recorder: knows which values eager tensors and variables hold.

    Attributes:
        hits: ops with a bad output, since the caller set it to 0.
        values: stores the values of chosen tensors; None if none are.
    """

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        self.records = FastRecords(session, recorder)
        self._known: dict[int, _Known] = {}
        self._kept: list[Any] = []
        self._sinks: dict[int, dict[int, list[tuple[int, str, str]]]] = {}
        self._step = -1
        self._runs: dict[int, list[int]] = defaultdict(list)
        self._found: dict[tuple[str, str], tuple[int, int]] = {}
        self._clock = 0
        self._failed = False
        self.hits = 0
        self.values: ValueCapture | None = None

    def run(self, call: Call) -> tuple[list[Any], list[dict[str, Any]]]:
        """Run a call with all its side effects, each op recorded.

        Args:
            call: what the program calls.

        Returns:
            Its outputs, and the sinks that took a bad value.

        Raises:
            NotInterpretable: it cannot be run op by op; nothing has run.
        """
        self.records.full = True
        self._found = {}
        if call.step != self._step or len(self._runs) > _MAX_RUNS:
            # A backward function that is called for itself finds its forward's runs.
            self._runs.clear()
            self._step = call.step
        recorder = self._recorder
        unknown = [arg for arg in call.args if tensors.is_float(arg) and recorder.value_id(arg) < 0]
        recorder.register_data(unknown)
        wanted = self._sinks_of(call)
        chosen = self.values.places_of(call.function) if self.values is not None else {}
        on_op = self._heard(wanted, chosen)
        self._clock = time.monotonic_ns()
        outputs = Interpreter(on_op).run(call.graph, call.args)
        sinks = [
            sink_of(self._session, kind, name, op_id, slot, call.step)
            for (kind, name), (op_id, slot) in self._found.items()
        ]
        return outputs, sinks

    def _heard(self, wanted: dict[int, list[tuple[int, str, str]]], chosen: Places) -> Any:
        records, known_ops = self.records, self._known
        epoch = self._session.writer.epoch_monotonic_ns
        clock = time.monotonic_ns

        def on_op(op: tf.Operation, inputs: list[Any], outputs: list[Any]) -> None:
            try:
                record(op, inputs, outputs)
                places = chosen.get(id(op)) if chosen else None
                if places and self.values is not None:
                    self.values.store(places, outputs)
                    self._clock = clock()
            except Exception as error:  # the program's ops go on
                self._fail(op, error)

        def record(op: tf.Operation, inputs: list[Any], outputs: list[Any]) -> None:
            end, start = clock(), self._clock
            known = known_ops.get(id(op))
            if known is None:
                known = self._examined(op)
            if known.constant:
                self._clock = clock()
                return
            if known.view:
                records.view(
                    known.kind, known.site, known.phase, inputs, outputs, start_ns=start - epoch,
                    duration_ns=end - start,
                )  # fmt: skip
                self._clock = clock()
                return
            written, seen = None, outputs
            if known.writes and inputs and inputs[0]._datatype_enum() == RESOURCE:
                value = inputs[-1] if known.kind == "AssignVariableOp" else None
                written = value if value is not None else tensors.seen(inputs[0])
                seen = [inputs[0], *outputs]
            op_id, bad = records.op(
                known.kind, known.site, known.phase, inputs, seen, flags=known.flags,
                fwd_op_id=self._forward_id(known), start_ns=start - epoch,
                duration_ns=end - start, written=written,
            )  # fmt: skip
            self._runs[id(op)].append(op_id)
            if bad:
                self.hits += 1
                self._see(op, op_id, wanted, seen)
            self._clock = clock()

        return on_op

    def _fail(self, op: tf.Operation, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            message = f"{op.type} ({op.name}) was not recorded: {error!r}"
            self._session.note("hook_failed", message, "error")

    def _examined(self, op: tf.Operation) -> _Known:
        known = facts.facts_of(op)
        kind = op.type
        flags = known.flags | (OpFlag(0) if optables.can_create(op) else OpFlag.HARMLESS)
        if kind in GARBAGE:
            flags |= OpFlag.GARBAGE
        if len(self._known) > 1 << 18:
            self._known.clear()
            self._kept.clear()
        made = self._known[id(op)] = _Known(
            kind,
            facts.site_of(op, self._session.writer),
            int(Phase.DATA if kind in DATA else known.phase),
            int(flags),
            known.forward,
            kind in VIEWS,
            optables.writes(op),
            kind == "Const",
        )
        self._kept.append(op)  # an id stays an op's own only while the op lives
        return made

    def _forward_id(self, known: _Known) -> int:
        """Return the last run of the forward op; a loop's backward takes them from the end."""
        if known.forward is None:
            return NO_ID
        runs = self._runs.get(id(known.forward))
        return runs[-1] if runs else NO_ID

    def _see(
        self, op: tf.Operation, op_id: int, wanted: dict[int, list[tuple[int, str, str]]],
        outputs: Sequence[Any],
    ) -> None:  # fmt: skip
        for slot, kind, name in wanted.get(id(op), ()):
            if slot < len(outputs) and tensors.is_bad(outputs[slot]):
                self._found[kind, name] = op_id, slot

    def _sinks_of(self, call: Call) -> dict[int, list[tuple[int, str, str]]]:
        """Return the sinks of a call's graphs by ``id`` of the op that makes their value."""
        key = id(call.graph)
        found = self._sinks.get(key)
        if found is None:
            found = self._sinks[key] = defaultdict(list)
            self._kept.append(call.graph)
            self._collect(call.function, True, found, set())
        return found

    def _collect(self, function: Any, top: bool, found: Any, seen: set[bytes]) -> None:
        if function.name in seen:
            return
        seen.add(function.name)
        graph = function.graph
        editor = Editor(function.definition, graph)
        for tensor, kind, name in sinks_of(graph, editor, top).values():
            producer = tensor
            while producer.op.type in VIEWS and producer.op.inputs:
                producer = producer.op.inputs[0]
            if kind and kind != "parameter":
                known = found[id(producer.op)]
                if not any(slot == producer.value_index for slot, _, _ in known):
                    known.append((producer.value_index, kind, name))
        for op in graph.get_operations():
            if optables.writes(op) and editor.node(op.name) is not None:
                found[id(op)].append((0, "parameter", _variable_name(graph, op)))
        for child in getattr(function, "children", ()):
            self._collect(child, False, found, seen)


def _variable_name(graph: Any, op: tf.Operation) -> str:
    from tracelens_tensorflow.variables import name_of, variables_of

    variable = variables_of(graph).get(id(op.inputs[0]))
    return name_of(variable) if variable is not None else str(op.inputs[0].op.name)


def sink_of(
    session: Session, kind: str, name: str, op_id: int, slot: int, step: int
) -> dict[str, Any]:
    """Return the fields of a sink, with what the ring holds of its value."""
    value_id = op_id << SLOT_BITS | slot
    fields = sink_fields(kind, name, step, None, value_id)
    op = RingOps(session.writer.committed(), session.writer.strings).op(op_id)
    output = op.outputs[slot] if op is not None and slot < len(op.outputs) else None
    if output is None:
        return fields
    if output.dtype:
        fields["dtype"] = output.dtype
    if output.shape is not None:
        fields["shape"] = list(output.shape)
    found = output.stats
    if found is not None:
        fields["stats"] = {
            "numel": found.numel,
            "nan": found.nan,
            "posinf": found.posinf,
            "neginf": found.neginf,
            "vmin": found.vmin,
            "vmax": found.vmax,
        }
    if output.first_bad:
        fields["first_bad"] = list(output.first_bad)
    return fields
