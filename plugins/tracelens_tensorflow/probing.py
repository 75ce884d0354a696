"""Builds twins of functions in which every op is recorded with its outputs' statistics, in C++."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tensorflow.core.framework import node_def_pb2
from tensorflow.python.framework import tensor_util

from tracelens import stats
from tracelens.events import SLOT_BITS, OpFlag, Phase
from tracelens_tensorflow import facts, fdef, optables
from tracelens_tensorflow.fdef import PREFIX, Editor
from tracelens_tensorflow.frontier import Level
from tracelens_tensorflow.graphplan import Plan, Planned, plan
from tracelens_tensorflow.native.recorder import Kind, NativeRecorder
from tracelens_tensorflow.twin import Builder, Part, SinksOf, _Where
from tracelens_tensorflow.variables import name_of, variables_of

if TYPE_CHECKING:
    import tensorflow as tf

    from tracelens.storage.writer import ShardWriter

_XLA = "_XlaMustCompile"
_MAX_CONSTANT = 1 << 20
"""Elements of a constant beyond which it is not measured."""
_HIDDEN = frozenset(("resource", "variant"))


@dataclass(slots=True)
class Probed:
    """What is known of one probed function.

    Attributes:
        graph: weak reference to its graph.
        number: of its table in the native recorder.
        index: place in the table by name of the op.
        sinks: kind and name of a sink by the code of its value.
    """

    graph: weakref.ref[Any]
    number: int
    index: dict[str, int]
    sinks: dict[int, tuple[str, str]]


class ProbeBuilder(Builder):
    """Builds twins that record.

    Args:
        recorder: the compiled recorder.
        writer: the session's shard.
        sinks_of: the sinks of a graph.

    Attributes:
        probed: the probed functions by number.
        met_xla: the function built last holds, or is, one that XLA compiles: it has no probes.
    """

    def __init__(self, recorder: NativeRecorder, writer: ShardWriter, sinks_of: SinksOf) -> None:
        super().__init__(sinks_of, Level.SINKS, native=True)
        self._recorder = recorder
        self._writer = writer
        self._of_graph: weakref.WeakKeyDictionary[Any, Probed] = weakref.WeakKeyDictionary()
        self.probed: dict[int, Probed] = {}
        self.met_xla = False

    def build(self, function: Any) -> Part:
        """Return the twin of a function that the program calls."""
        self.met_xla = False
        return super().build(function)

    def _make(self, function: Any, where: _Where) -> Part:
        graph = function.graph
        editor = Editor(function.definition, graph)
        part = Part(function, where.xla or fdef.is_true(editor.definition.attr, _XLA))
        if part.xla:
            self.met_xla = True
            return part
        live, top = editor.live_ops(), where.top
        where = replace(where, top=False)
        called = {
            op.name for op in live if fdef.called_by(op) and self._call(editor, op, part, where, [])
        }
        steps = plan(graph, live, called)
        number = self._recorder.add_graph(steps.size)
        names = [(tensor.op.name, place) for place, tensor in enumerate(steps.arguments)]
        index = {**dict(names), **{p.op.name: p.index for p in steps.ops}}
        sinks = _coded(self._sinks_of(graph, editor, top), steps, graph)
        probed = Probed(weakref.ref(graph), number, index, sinks)
        self._of_graph[graph] = self.probed[number] = probed
        self._describe(probed, steps)
        if steps.ops:
            _Placing(editor, number, steps).run(graph)
        part.checks += len(steps.ops)
        if steps.ops:
            part.function = self._register(editor, function)
        return part

    def _describe(self, probed: Probed, steps: Plan) -> None:
        for place, tensor in enumerate(steps.arguments):
            self._tell(probed, place, tensor.op, Kind.ARGUMENT, [], (), (tensor,))
        for planned in steps.ops:
            op = planned.op
            hidden = () if planned.seen else op.outputs
            read = [tensor for tensor in op.inputs if _is_read(planned, tensor)]
            self._tell(probed, planned.index, op, planned.kind, planned.inputs, read, hidden)
            if planned.kind is Kind.CONSTANT:
                self._measure(probed, planned)

    def _tell(
        self, probed: Probed, index: int, op: tf.Operation, kind: Kind, inputs: list[int],
        read: Collection[Any], hidden: Collection[Any],
    ) -> None:  # fmt: skip
        known = facts.facts_of(op)
        phase = Phase.DATA if kind is Kind.ARGUMENT else known.phase
        self._recorder.describe(
            probed.number, index, site=self._site(op, kind), phase=int(phase),
            kind=kind, flags=int(_flags(op, kind) | known.flags),
            forward=self._forward(known.forward),
            n_out=1 if kind is Kind.WRITE else len(op.outputs), inputs=inputs,
            in_layout=[_layout(t) for t in read], out_layout=[_layout(t) for t in hidden],
        )  # fmt: skip

    def _site(self, op: tf.Operation, kind: Kind) -> int:
        if kind is Kind.ARGUMENT:
            return int(self._writer.intern("site", {"op": "step_input"}))
        return facts.site_of(op, self._writer)

    def _forward(self, op: tf.Operation | None) -> tuple[int, int]:
        probed = self._of_graph.get(op.graph) if op is not None else None
        index = probed.index.get(op.name) if probed is not None and op is not None else None
        return (-1, -1) if probed is None or index is None else (probed.number, index)

    def _measure(self, probed: Probed, planned: Planned) -> None:
        dtype = planned.op.outputs[0].dtype
        if not (dtype.is_floating or dtype.is_complex):
            return
        value = tensor_util.constant_value(planned.op.outputs[0])
        if value is not None and 0 < value.size <= _MAX_CONSTANT:
            found = stats.measure(value if value.dtype.kind in "fc" else value.astype("float32"))
            if found is not None:
                self._recorder.set_constant(probed.number, planned.index, found)


class _Placing:
    """Puts a frame, the probes and the links into a definition."""

    def __init__(self, editor: Editor, number: int, steps: Plan) -> None:
        self._editor = editor
        self._number = number
        self._steps = steps
        self._frame = ""
        self._call_probes: list[str] = []

    def run(self, graph: Any) -> None:
        steps = self._steps
        frame = self._node("Frame", "frame", steps.arguments)
        frame.attr["graph"].i = self._number
        self._editor.add_node(frame)
        self._frame = f"{frame.name}:frame:0"
        also: list[int] = []
        for planned in steps.ops:
            if not planned.seen and planned.handle is None and planned is not steps.ops[-1]:
                also.append(planned.index)
                continue
            if planned.kind is Kind.CALL:
                inputs = [(tensor, steps.code(tensor)) for tensor in planned.op.inputs]
                link = self._link(f"before_{planned.index}", inputs)
                self._editor.node(planned.op.name).input.append(f"^{link}")
            self._probe(planned, also)
            also = []
        self._link_outputs(graph)

    def _probe(self, planned: Planned, also: list[int]) -> None:
        values = [tensor for _, tensor in planned.seen]
        slots = [slot for slot, _ in planned.seen]
        if planned.handle is not None:
            values.append(planned.handle)
            slots.append(0)
        node = self._node("Probe", f"probe_{planned.index}", values)
        if planned.kind is Kind.WRITE or not values:
            node.input.append(f"^{planned.op.name}")
        node.attr["graph"].i = self._number
        node.attr["op"].i = planned.index
        node.attr["slots"].list.i.extend(slots)
        node.attr["also"].list.i.extend(also)
        self._editor.add_node(node)
        self._editor.keep(node.name)
        if planned.kind is Kind.CALL:
            self._call_probes.append(node.name)

    def _link_outputs(self, graph: Any) -> None:
        """Tell where the outputs lie before anyone is handed them."""
        editor, told, gates = self._editor, [], []
        count = len(editor.definition.signature.output_arg)
        for tensor in graph.outputs[:count]:
            op = tensor.op
            # What tracing appends to hand out a value: nothing in the graph waits for it.
            if op.type == "Identity" and editor.node(op.name) and not tensor.consumers():
                gates.append(op.name)
                tensor = op.inputs[0]
            told.append((tensor, self._steps.code(tensor)))
        if any(tensor.dtype.name != "resource" for tensor, _ in told):
            link = self._link("after", told)
            for name in dict.fromkeys(gates):
                editor.node(name).input.append(f"^{link}")

    def _link(self, name: str, pairs: list[tuple[Any, int]]) -> str:
        kept = [(t, code) for t, code in pairs if t.dtype.name != "resource"]
        node = self._node("Link", name, [tensor for tensor, _ in kept])
        node.attr["codes"].list.i.extend(code for _, code in kept)
        node.attr["graph"].i = self._number
        # A value may lie where one that a call returned did: that one is asked for first.
        node.input.extend(f"^{probe}" for probe in self._call_probes)
        self._editor.add_node(node)
        self._editor.keep(node.name)
        return str(node.name)

    def _node(self, op: str, name: str, tensors: Collection[Any]) -> node_def_pb2.NodeDef:
        node = node_def_pb2.NodeDef(name=f"{PREFIX}{name}", op=f"TraceLens{op}")
        if self._frame:
            node.input.append(self._frame)
        node.input.extend(self._editor.ref(tensor) for tensor in tensors)
        node.attr["T"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in tensors)
        return node


def _coded(sinks: Any, steps: Plan, graph: Any) -> dict[int, tuple[str, str]]:
    """Return sinks by the code of their value; what a variable holds is known by its last write."""
    found: dict[int, tuple[str, str]] = {}
    variables = variables_of(graph)
    for planned in steps.ops:
        if planned.kind is Kind.WRITE:
            variable = variables.get(id(planned.handle))
            name = name_of(variable) if variable is not None else planned.handle.op.name
            found[planned.index << SLOT_BITS] = ("parameter", name)
    for tensor, kind, name in sinks.values():
        code = steps.code(tensor)
        if code >= 0 and kind and kind != "parameter":
            found.setdefault(code, (kind, name))
    return found


def _is_read(planned: Planned, tensor: Any) -> bool:
    if planned.kind is Kind.VIEW:
        return tensor is planned.op.inputs[0]
    return not (planned.op.type == "AssignVariableOp" and tensor is planned.op.inputs[0])


def _flags(op: tf.Operation, kind: Kind) -> OpFlag:
    if kind is Kind.CONSTANT:
        return OpFlag.CONSTANT
    if kind is Kind.VIEW:
        return OpFlag.VIEW | OpFlag.HARMLESS
    if kind is Kind.CALL:
        return OpFlag.COMPOSITE | OpFlag.HARMLESS
    if kind is Kind.WRITE:
        return OpFlag.HARMLESS if op.type == "AssignVariableOp" else OpFlag.INPLACE
    if op.type == "Empty":
        return OpFlag.GARBAGE
    return OpFlag(0) if optables.can_create(op) else OpFlag.HARMLESS


def _layout(tensor: Any) -> list[Any] | None:
    """Return ``[dtype, sizes, device]``, a size that only a run tells as -1."""
    if tensor.dtype.name in _HIDDEN or tensor.shape.rank is None:
        return None
    return [tensor.dtype.name, [-1 if n is None else n for n in tensor.shape.as_list()], "cpu"]
