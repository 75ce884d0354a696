"""Writes the ops of one `Session.run` as records, from the arrays that its tensors held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.events import NO_ID, OpFlag, Phase
from tracelens.judge import user_frame
from tracelens.oprecords import OpRun, OpWriter, thread_id, value_of
from tracelens.userframes import source_at, source_keys
from tracelens_tensorflow.session_functions import Functions
from tracelens_tensorflow.session_held import Held, HeldTensors, is_bad
from tracelens_tensorflow.session_known import KnownOp, Slot, known_ops, short_device
from tracelens_tensorflow.session_plan import Plan

if TYPE_CHECKING:
    from tracelens.session import Session

_CHECKED = int(OpFlag.CHECKED)
_HIT = int(OpFlag.CHECKED | OpFlag.HIT)

FEED = "feed"
"""Name of the op of phase ``data`` that stands for a fed placeholder."""


@dataclass
class Execution:
    """One run, as it is written.

    Attributes:
        plan: its kind.
        ran: ops that ran, producers first.
        values: arrays by tensor name, feeds included.
        before: variables' values before it, by variable op.
        after: and after it.
        step: its step.
        devices: device of each op by name, where known.
        in_loops: of an op that ends a TF1 loop, the op within that made its value bad.
        looks_inside: run the functions of its calls, branches and loops once more, op by op.
        times: ``(start_ns, duration_ns)`` of each op by name, where measured.
        flags: further ``OpFlag`` bits of every op.
        source: keys of a ``site`` for the line that called ``run``.
        number: how manieth run of the session it is.
    """

    plan: Plan
    ran: list[Any]
    values: Mapping[str, Any]
    before: Mapping[Any, Any] = field(default_factory=dict)
    after: Mapping[Any, Any] = field(default_factory=dict)
    step: int = 0
    devices: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    in_loops: Mapping[Any, Any] = field(default_factory=dict)
    looks_inside: bool = False
    flags: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0


class Recorder:
    """Writes executions of one recording.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._writer = OpWriter(session.writer, HeldTensors())
        self._variable_ids: dict[Any, int] = {}

    def forget(self, variables: Any) -> None:
        """Variables were written by something that is not recorded."""
        for variable in variables:
            self._variable_ids.pop(variable, None)

    def record(self, execution: Execution) -> dict[str, int]:
        """Write an execution; return value ids by tensor name."""
        plan = execution.plan
        if plan.known is None:
            plan.known = known_ops(plan, self._session.writer)
        return _Recording(self, execution, plan.known).write()

    @property
    def variable_ids(self) -> dict[Any, int]:
        """Ids of the values that variables hold, by variable op."""
        return self._variable_ids

    @property
    def session(self) -> Session:
        """The recording."""
        return self._session

    @property
    def writer(self) -> OpWriter:
        """Writes the records."""
        return self._writer


class _Recording:
    def __init__(self, recorder: Recorder, execution: Execution, known: dict[Any, KnownOp]) -> None:
        self._session = recorder.session
        self._out = recorder.writer
        self._run = execution
        self._known = known
        self._ids: dict[str, int] = {}
        self._variables = recorder.variable_ids
        self._held: dict[str, Held] = {}
        self._op_ids: dict[Any, int] = {}
        self._trainable = _trainable(execution.plan.graph)
        self._tid = thread_id()

    def write(self) -> dict[str, int]:
        """Write every op; return value ids by tensor name."""
        self._out.step = self._run.step
        self._out.extra_flags = self._run.flags
        for name in sorted(self._run.plan.fed):
            self._feed(name)
        functions: Functions | None = None
        if self._run.looks_inside and any(op in self._known for op in self._run.ran):
            functions = Functions(self._session, self._array_of, self._id_of, self._run.before)
        for op in self._run.ran:
            known = self._known.get(op)
            if known is None:
                continue
            if known.reads is not None:
                self._read(known, known.reads)
            elif op in self._run.in_loops:
                self._end_of_loop(known, self._known.get(self._run.in_loops[op]))
            elif functions is None or not self._looked_into(op, known, functions):
                self._op_ids[op] = self._op(known)
        if functions is not None:
            functions.close()
        return self._ids

    def _end_of_loop(self, known: KnownOp, culprit: KnownOp | None) -> None:
        """Record the op within a loop that made its result bad, and the result as its value."""
        if culprit is None:
            self._op(known)
            return
        op_id: int = self._session.writer.reserve_op_id()
        forward = self._op_ids.get(culprit.forward, NO_ID)
        flags = culprit.flags | int(OpFlag.UNSEEN_INPUTS)
        slot = known.outputs[0]
        held = Held(self._run.values.get(slot.name), known.device, False, slot.dtype, slot.sizes)
        run = OpRun(
            op_id, flags | _flags([held]), culprit.phase, culprit.site, forward, tid=self._tid,
            start_ns=self._out.now_ns(), outputs=[(held, value_of(op_id, 0))],
        )  # fmt: skip
        self._out.op(run, full=True)
        self._ids[slot.name] = value_of(op_id, 0)
        self._held[slot.name] = held

    def _looked_into(self, op: Any, known: KnownOp, functions: Functions) -> bool:
        """Record what an op runs in its own place, if that is worth it and can be done."""
        if not (known.functions or known.lists):
            return False
        try:
            if not known.functions:
                functions.make(op)
                return False
            bad = any(is_bad(self._array_of(slot.name)) for slot in known.outputs)
            if not (bad or known.lists):
                return False
            made = functions.run(op)
            values = [
                None if slot.dtype == "variant" else tensor.numpy()
                for slot, (tensor, _) in zip(known.outputs, made, strict=True)
            ]
        except Exception as error:
            text = f"{known.name} could not be looked into: {error}".splitlines()[0][:300]
            self._session.note("replay", text, "warning")
            return False
        for slot, array in zip(known.outputs, values, strict=True):
            if array is not None and is_bad(array) != is_bad(self._array_of(slot.name)):
                self._session.note("replay", f"{known.name} gave other values op by op", "warning")
                return False
        for slot, array, (_, value_id) in zip(known.outputs, values, made, strict=True):
            self._ids[slot.name] = value_id
            self._held[slot.name] = Held(array, known.device, False, slot.dtype, slot.sizes)
        return True

    def _array_of(self, name: str) -> Any:
        held = self._held.get(name)
        return self._run.values.get(name) if held is None or held.array is None else held.array

    def _id_of(self, what: Any) -> int:
        ids = self._ids if isinstance(what, str) else self._variables
        return ids.get(what, NO_ID)

    def _feed(self, name: str) -> None:
        """Write what was fed as an op of phase ``data``, at the line of the call."""
        session = self._session
        site = {"op": FEED, "module": name.partition(":")[0], **self._run.source}
        op_id = session.writer.reserve_op_id()
        value_id = value_of(op_id, 0)
        array = self._run.values.get(name)
        held = self._held[name] = Held(array, "cpu")
        self._ids[name] = value_id
        flags = _flags([held])
        self._out.op(
            OpRun(
                op_id,
                flags,
                Phase.DATA,
                int(session.writer.intern("site", site)),
                start_ns=self._out.now_ns(),
                tid=thread_id(),
                outputs=[(held, value_id)],
            ),
            full=True,
        )
        shape = np.shape(array)
        session.event(
            "data",
            step=self._run.step,
            op_id=op_id,
            loader=f"feed_dict[{name}]",
            batch_index=self._run.number,
            batch_size=shape[0] if shape else None,
            sample_indices=None,
        )

    def _read(self, known: KnownOp, variable: Any) -> None:
        """A read hands on the variable's value: it has no op of its own."""
        name = known.outputs[0].name
        array = self._run.values.get(name)
        if variable.type != "VarHandleOp" or array is None:
            # What is fetched of a reference is its memory, which this run may have written.
            array = self._run.before.get(variable)
        self._ids[name] = self._variables.get(variable, NO_ID)
        self._held[name] = self._of_variable(variable, array)

    def _of_variable(self, variable: Any, array: Any) -> Held:
        return Held(array, short_device(variable.device), variable.name in self._trainable)

    def _op(self, known: KnownOp) -> int:
        run = self._run
        op_id: int = self._session.writer.reserve_op_id()
        inputs = [self._input(slot) for slot in known.inputs]
        outputs: list[tuple[Held, int]] = []
        if known.writes:
            for variable in known.writes:
                value_id = value_of(op_id, len(outputs))
                self._variables[variable] = value_id
                outputs.append((self._of_variable(variable, run.after.get(variable)), value_id))
            for slot in known.outputs:
                self._ids[slot.name] = value_of(op_id, 0)
        else:
            device = run.devices.get(known.name)
            device = known.device if device is None else short_device(device)
            for slot in known.outputs:
                value_id = value_of(op_id, len(outputs))
                held = Held(run.values.get(slot.name), device, False, slot.dtype, slot.sizes)
                outputs.append((held, value_id))
                if slot.name not in run.plan.fed:
                    self._ids[slot.name] = value_id
                    self._held[slot.name] = held
        forward = self._op_ids.get(known.forward, NO_ID) if known.forward is not None else NO_ID
        start_ns, duration_ns = run.times.get(known.name, (self._out.now_ns(), -1))
        self._out.op(
            OpRun(
                op_id,
                known.flags | _flags([held for held, _ in outputs]),
                known.phase,
                known.site,
                forward,
                start_ns,
                duration_ns,
                self._tid,
                inputs,
                outputs,
            ),
            full=True,
        )
        return op_id

    def _input(self, slot: Slot) -> tuple[Held, int]:
        if slot.variable is not None:
            array = self._run.before.get(slot.variable)
            known = self._of_variable(slot.variable, array)
            return known, self._variables.get(slot.variable, NO_ID)
        held = self._held.get(slot.name)
        if held is None:
            array = self._run.values.get(slot.name)
            held = Held(array, "", False, slot.dtype, slot.sizes)
        return held, self._ids.get(slot.name, NO_ID)


def _flags(outputs: list[Held]) -> int:
    flags = 0
    for held in outputs:
        found = held.measure()
        if found is not None:
            flags |= _HIT if found.nonfinite else _CHECKED
    return flags


def _trainable(graph: Any) -> set[str]:
    try:
        return {v.op.name for v in graph.get_collection("trainable_variables")}
    except Exception:
        return set()


def caller_keys() -> dict[str, Any]:
    """Return the source keys of a ``site`` for the user's line that runs now."""
    frame = user_frame()
    if frame is None:
        return {}
    code = frame.f_code
    function = getattr(code, "co_qualname", code.co_name)
    return source_keys(source_at(code.co_filename, frame.f_lineno, function))
