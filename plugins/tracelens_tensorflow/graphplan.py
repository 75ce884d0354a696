"""How the ops of a traced graph are to be recorded: which are alive, what values they read.

A run of a graph reserves one id for each of its ops, so an output's value id follows from the
graph: op index * 16 + slot. Such a *code* is turned into an id when the graph runs. Codes below
-1 stand for what the graph was called with: argument ``-2 - code``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracelens.events import MAX_SLOT, SLOT_BITS
from tracelens_tensorflow import optables
from tracelens_tensorflow.native.recorder import Kind

if TYPE_CHECKING:
    import tensorflow as tf

UNKNOWN = -1
"""The code of a value that cannot be told."""

PASSED_ON = frozenset("Identity StopGradient PreventGradient Snapshot".split())
"""They hand on their input as it is, for the graph's sake: no ops to a reader of the trace."""

VIEWS = frozenset("Reshape ExpandDims Squeeze EnsureShape".split())
"""Their output is their input's memory: nothing is written."""

_SILENT = frozenset("NoOp Placeholder VarHandleOp Assert LoopCond".split())
_LISTS = frozenset("TensorListPushBack TensorListSetItem TensorListFromTensor".split())
"""They put a tensor into a list: what the list holds is known by what was put in last."""
_WITH_TENSORS = (*optables.CALLS, *optables.BRANCHES, *optables.LOOPS)


@dataclass(slots=True)
class Planned:
    """One op to be recorded.

    Attributes:
        op: the op.
        index: its place in the graph's table.
        kind: how a probe treats it.
        inputs: value codes of its inputs.
        seen: outputs for a probe to measure, by slot; empty if a record alone will do.
        handle: the variable that a probe has to look at.
    """

    op: tf.Operation
    index: int
    kind: Kind
    inputs: list[int]
    seen: list[tuple[int, Any]] = field(default_factory=list)
    handle: Any = None


@dataclass(slots=True)
class Plan:
    """All that is to be recorded of a graph.

    Attributes:
        arguments: the graph's inputs, whose places in the table come first.
        ops: the ops after them, in the order in which they were traced.
        codes: value code of each tensor of the graph, by ``id``.
    """

    arguments: list[Any]
    ops: list[Planned]
    codes: dict[int, int]

    @property
    def size(self) -> int:
        """How many places the graph's table has."""
        return len(self.arguments) + len(self.ops)

    def code(self, tensor: Any) -> int:
        """Return the code of a tensor's value."""
        return self.codes.get(id(tensor), UNKNOWN)


def plan(graph: Any, live: Iterable[tf.Operation], probed: Collection[str]) -> Plan:
    """Return what is to be recorded of a graph.

    Args:
        graph: a ``FuncGraph`` whose tracing is over.
        live: the ops that a run of it runs, producers first.
        probed: names of the calls, branches and loops whose functions are recorded themselves.
    """
    arguments = list(graph.inputs)
    codes = {id(tensor): UNKNOWN - 1 - place for place, tensor in enumerate(arguments)}
    result = Plan(arguments, [], codes)
    written: dict[int, int] = {}
    for op in live:
        if op.type in _SILENT:
            continue
        outputs = op.outputs
        if op.type in PASSED_ON:
            codes[id(outputs[0])] = result.code(op.inputs[0])
            continue
        index = result.size
        planned = _planned(op, index, result, written, op.name in probed)
        result.ops.append(planned)
        shown = planned.kind is Kind.VIEW
        for slot, tensor in enumerate(outputs):
            codes[id(tensor)] = planned.inputs[0] if shown else code_of(index, slot)
    return result


def code_of(index: int, slot: int) -> int:
    """Return the code of an op's output."""
    return (index << SLOT_BITS) | min(slot, MAX_SLOT)


def _planned(
    op: tf.Operation, index: int, so_far: Plan, written: dict[int, int], probed: bool
) -> Planned:
    inputs, handles = [], []
    for tensor in op.inputs:
        code = so_far.code(tensor)
        if tensor.dtype.name == "resource":
            handles.append((tensor, code))
            code = written.get(code, code)
        inputs.append(code)
    planned = Planned(op, index, Kind.PLAIN, inputs)
    if op.type == "Const":
        planned.kind = Kind.CONSTANT
    elif op.type in VIEWS and inputs[0] != UNKNOWN:
        planned.kind = Kind.VIEW
        del inputs[1:]
    elif optables.writes(op) and handles:
        # Only the first is sure to be written; fused updates write their slots too.
        planned.kind, planned.handle = Kind.WRITE, handles[0][0]
        for _, code in handles:
            written[code] = code_of(index, 0)
        if op.type == "AssignVariableOp":
            del inputs[0]
    elif op.type in _WITH_TENSORS:
        if probed:
            planned.kind = Kind.CALL
            planned.seen = list(enumerate(op.outputs))
        else:
            planned.seen = _floats(op.outputs)
        for _, code in handles:
            written[code] = UNKNOWN
    else:
        if op.type == "ReadVariableOp":
            planned.kind = Kind.READ
            # Another graph may have written it: what it holds is asked for when this one runs.
            planned.handle = op.inputs[0] if inputs[0] == UNKNOWN else None
        planned.seen = _floats(op.outputs)
        if op.type in _LISTS:
            planned.seen = [(0, tensor) for _, tensor in _floats(op.inputs)][:1]
    return planned


def _floats(tensors: Iterable[Any]) -> list[tuple[int, Any]]:
    return [
        (slot, tensor)
        for slot, tensor in enumerate(tensors)
        if tensor.dtype.is_floating or tensor.dtype.is_complex
    ]
