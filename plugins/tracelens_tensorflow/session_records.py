"""Writes the ops of one `Session.run` as records, from the arrays that its tensors held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens import stats
from tracelens.events import NO_ID, OpFlag, Phase, Stats
from tracelens.judge import user_frame
from tracelens.oprecords import OpRun, OpWriter, thread_id, value_of
from tracelens.userframes import source_at, source_keys
from tracelens_tensorflow import facts
from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.session_plan import Plan

if TYPE_CHECKING:
    from tracelens.session import Session

FEED = "feed"
"""Name of the op of phase ``data`` that stands for a fed placeholder."""

_SKIPPED = frozenset({"NoOp", "VarHandleOp", "VariableV2", "Variable", "VarIsInitializedOp"})
_DATA_PREFIXES = ("IteratorGetNext", "QueueDequeue", "ReaderRead", "Dequeue")


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a tensor held.

    Attributes:
        array: its values, ``None`` if they were not fetched.
        device: where it was.
        parameter: it is a trainable variable's value.
        dtype: its dtype, where nothing was fetched.
        sizes: its shape, where nothing was fetched but the graph tells.
    """

    array: Any
    device: str = ""
    parameter: bool = False
    dtype: str = ""
    sizes: tuple[int, ...] | None = None


class HeldTensors:
    """Reads arrays for the core's op writer."""

    def layout_of(self, tensor: Held) -> list[Any] | None:
        """Return ``[dtype, [sizes], device]``, ``None`` where nothing is known."""
        array = tensor.array
        if not isinstance(array, np.ndarray | np.generic):
            if not tensor.dtype:
                return None
            sizes = None if tensor.sizes is None else list(tensor.sizes)
            return [tensor.dtype, sizes, tensor.device]
        return [array.dtype.name, [int(size) for size in array.shape], tensor.device]

    def measure(self, tensor: Held) -> Stats | None:
        """Return the statistics of an array of floats."""
        array = as_floats(tensor.array)
        return stats.measure(array) if array is not None else None

    def first_bad(self, tensor: Held) -> tuple[int, ...]:
        """Return the flat indices of its first NaN or Inf elements."""
        array = as_floats(tensor.array)
        return stats.first_bad(array) if array is not None else ()

    def is_parameter(self, tensor: Held) -> bool:
        """Tell whether it is a trainable variable's value."""
        return tensor.parameter


def as_floats(value: Any) -> Any:
    """Return an array that can be measured, ``None`` for what holds no floats.

    NumPy itself has no bfloat16: such an array is widened.
    """
    if not isinstance(value, np.ndarray | np.generic) or not value.size:
        return None
    array = np.asarray(value)
    if array.dtype.kind in "fc":
        return array
    if array.dtype.name.startswith(("bfloat16", "float8")):
        return array.astype(np.float32)
    return None


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
        return _Recording(self, execution).write()

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
    def __init__(self, recorder: Recorder, execution: Execution) -> None:
        self._session = recorder.session
        self._out = recorder.writer
        self._run = execution
        self._ids: dict[str, int] = {}
        self._variables = recorder.variable_ids
        self._held: dict[str, Held] = {}
        self._op_ids: dict[Any, int] = {}
        self._views: dict[str, Any] = {}
        self._trainable = _trainable(execution.plan.graph)

    def write(self) -> dict[str, int]:
        """Write every op; return value ids by tensor name."""
        self._out.step = self._run.step
        self._out.extra_flags = self._run.flags
        for name in sorted(self._run.plan.fed):
            self._feed(name)
        for op in self._run.ran:
            if op.type in _SKIPPED:
                continue
            variable = kinds.read_variable(op)
            if variable is not None:
                self._read(op, variable)
            else:
                self._op(op)
        return self._ids

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

    def _read(self, op: Any, variable: Any) -> None:
        """A read hands on the variable's value: it has no op of its own."""
        name = op.outputs[0].name
        by_reference = op.type != "ReadVariableOp" or name not in self._run.values
        array = self._run.before.get(variable) if by_reference else self._run.values[name]
        self._ids[name] = self._variables.get(variable, NO_ID)
        self._held[name] = self._of_variable(variable, array)

    def _of_variable(self, variable: Any, array: Any) -> Held:
        return Held(array, self._device(variable), variable.name in self._trainable)

    def _op(self, op: Any) -> None:
        writes = kinds.is_write(op)
        op_id = self._session.writer.reserve_op_id()
        inputs = [
            pair for pair in (self._input(op, tensor) for tensor in op.inputs) if pair is not None
        ]
        outputs: list[tuple[Held, int]] = []
        if writes:
            for variable in kinds.written_by(op):
                value_id = value_of(op_id, len(outputs))
                self._variables[variable] = value_id
                after = self._run.after.get(variable)
                outputs.append((self._of_variable(variable, after), value_id))
                for tensor in op.outputs:
                    self._ids[tensor.name] = value_id
        else:
            for tensor in op.outputs:
                value_id = value_of(op_id, len(outputs))
                held = self._held_by(tensor, self._device(op))
                outputs.append((held, value_id))
                if tensor.name not in self._run.plan.fed:
                    self._ids[tensor.name] = value_id
                    self._held[tensor.name] = held
        known = facts.facts_of(op)
        phase = Phase.DATA if op.type.startswith(_DATA_PREFIXES) else known.phase
        if writes and phase is not Phase.BACKWARD and self._run.plan.is_step:
            phase = Phase.OPTIMIZER
        forward = self._op_ids.get(known.forward, NO_ID) if known.forward is not None else NO_ID
        flags = _flags([held for held, _ in outputs])
        if writes:
            flags |= OpFlag.INPLACE
        if op.type == "Const":
            flags |= OpFlag.CONSTANT
        if not known.exact and known.source is not None:
            flags |= OpFlag.INEXACT_SOURCE
        start_ns, duration_ns = self._run.times.get(op.name, (self._out.now_ns(), -1))
        self._op_ids[op] = op_id
        self._out.op(
            OpRun(
                op_id,
                int(flags),
                phase,
                facts.site_of(op, self._session.writer),
                forward,
                start_ns,
                duration_ns,
                thread_id(),
                inputs,
                outputs,
            ),
            full=True,
        )

    def _input(self, op: Any, tensor: Any) -> tuple[Held, int] | None:
        if kinds.is_handle(tensor):
            variable = kinds.variable_of(tensor)
            if variable is None:
                return None
            array = self._run.before.get(variable)
            return self._of_variable(variable, array), self._variables.get(variable, NO_ID)
        held = self._held.get(tensor.name) or self._held_by(tensor, "")
        return held, self._ids.get(tensor.name, NO_ID)

    def _held_by(self, tensor: Any, device: str) -> Held:
        array = self._run.values.get(tensor.name)
        if array is not None:
            return Held(array, device)
        shape = tensor.shape
        sizes = tuple(shape.as_list()) if shape.is_fully_defined() else None
        return Held(None, device, dtype=tensor.dtype.base_dtype.name, sizes=sizes)

    def _device(self, op: Any) -> str:
        name = self._run.devices.get(op.name) or op.device or ""
        kind, _, number = name.rpartition("/device:")[2].lower().partition(":")
        if kind in ("", "cpu"):
            return "cpu"
        return f"{'cuda' if kind == 'gpu' else kind}:{number or 0}"


def _flags(outputs: list[Held]) -> int:
    flags = 0
    for held in outputs:
        array = as_floats(held.array)
        if array is None:
            continue
        flags |= OpFlag.CHECKED
        if stats.check(array) == 1:
            flags |= OpFlag.HIT
    return int(flags)


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
