"""Puts probes into traced graphs: every op is recorded with its outputs' statistics, in C++."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import tensor_util

from tracelens import stats
from tracelens.events import OpFlag, Phase
from tracelens_tensorflow import facts, optables
from tracelens_tensorflow.graphplan import Plan, Planned, plan
from tracelens_tensorflow.native.recorder import Kind, NativeRecorder

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter

_MAX_CONSTANT = 1 << 20
"""Elements of a constant beyond which it is not measured."""


class Probed:
    """A graph that has probes.

    Attributes:
        graph: weak reference to it.
        number: its table's number in the native recorder.
        ops: its recorded ops by index; None for an argument.
        index: their indices by name.
        n_arguments: how many of the table's places are arguments.
    """

    def __init__(self, graph: Any, number: int, steps: Plan) -> None:
        self.graph = weakref.ref(graph)
        self.number = number
        self.n_arguments = len(steps.arguments)
        names = [(tensor.op.name, place) for place, tensor in enumerate(steps.arguments)]
        self.index = {**dict(names), **{p.op.name: p.index for p in steps.ops}}
        self.kinds = {p.index: p.kind for p in steps.ops}

    def op(self, index: int) -> tf.Operation | None:
        """Return a recorded op, None if the graph is gone."""
        graph = self.graph()
        name = next((name for name, at in self.index.items() if at == index), None)
        return None if graph is None or name is None else graph.get_operation_by_name(name)


class Prober:
    """Puts probes into graphs, and knows those that have them.

    Graphs outlive sessions: their probes are idle without one, and write for the next.

    Args:
        recorder: the compiled recorder of the session.
        writer: the session's shard.
    """

    def __init__(self, recorder: NativeRecorder, writer: ShardWriter) -> None:
        self._recorder = recorder
        self._writer = writer
        self._known = _known

    def revive(self) -> None:
        """Take up the graphs that an earlier session probed."""
        for probed in list(self._known.values()):
            graph = probed.graph()
            if graph is None:
                continue
            for name, index in probed.index.items():
                site = facts.site_of(graph.get_operation_by_name(name), self._writer)
                self._recorder.set_site(probed.number, index, site)

    def of(self, graph: Any) -> Probed | None:
        """Return what is known of a graph's probes, None if it has none."""
        return self._known.get(graph)

    def inject(self, graph: Any) -> Probed:
        """Put probes into a graph whose tracing is over and that has not run yet."""
        known = self._known.get(graph)
        if known is not None:
            return known
        with graph.as_default(), tf.control_dependencies(None), record.stop_recording(), \
                graph.colocate_with(None, ignore_existing=True), tf.name_scope("tracelens/"):  # fmt: skip
            steps = plan(graph, self._runs_probed)
            number = self._recorder.add_graph(steps.size)
            probed = self._known[graph] = Probed(graph, number, steps)
            self._describe(probed, steps)
            if steps.ops:
                self._place(graph, number, steps)
        return probed

    def _runs_probed(self, op: tf.Operation) -> bool:
        """Tell whether what a call, branch or loop runs has probes."""
        try:
            names = _functions_of(op)
            return bool(names) and all(_has_frame(op.graph, name) for name in names)
        except (AttributeError, ValueError, TypeError):
            return False

    def _describe(self, probed: Probed, steps: Plan) -> None:
        for place, tensor in enumerate(steps.arguments):
            self._tell(probed, place, tensor.op, Kind.ARGUMENT, [], (), (tensor,))
        for planned in steps.ops:
            op = planned.op
            hidden = () if planned.seen else op.outputs
            read = [t for t in op.inputs if _is_read(planned, t)]
            self._tell(probed, planned.index, op, planned.kind, planned.inputs, read, hidden)
            if planned.kind is Kind.CONSTANT:
                self._measure(probed, planned)

    def _tell(
        self, probed: Probed, index: int, op: tf.Operation, kind: Kind, inputs: list[int],
        read: Any, hidden: Any,
    ) -> None:  # fmt: skip
        known = facts.facts_of(op)
        phase = Phase.DATA if kind is Kind.ARGUMENT else known.phase
        self._recorder.describe(
            probed.number, index, site=facts.site_of(op, self._writer), phase=int(phase),
            kind=kind, flags=int(_flags(op, kind)), forward=self._forward(known.forward),
            n_out=1 if kind is Kind.WRITE else len(op.outputs), inputs=inputs,
            in_layout=[_layout(t) for t in read], out_layout=[_layout(t) for t in hidden],
        )  # fmt: skip

    def _forward(self, op: tf.Operation | None) -> tuple[int, int]:
        probed = self._known.get(op.graph) if op is not None else None
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

    def _place(self, graph: Any, number: int, steps: Plan) -> None:
        ops = self._recorder.ops
        frame = ops.trace_lens_frame(arguments=steps.arguments, graph=number)
        also: list[int] = []
        last = steps.ops[-1]
        placed: list[tf.Operation] = []
        for planned in steps.ops:
            values = [tensor for _, tensor in planned.seen]
            if planned.handle is not None:
                values.append(planned.handle)
            if not values and planned is not last:
                also.append(planned.index)
                continue
            after = [planned.op] if planned.kind is Kind.WRITE or not values else []
            if planned.kind is Kind.CALL:
                link = ops.trace_lens_link(
                    frame, *_linked([(t, steps.code(t)) for t in planned.op.inputs])
                )
                planned.op._add_control_input(link)
                placed.append(link)
            with tf.control_dependencies(after):
                probe = ops.trace_lens_probe(
                    frame, values, graph=number, op=planned.index, also=also,
                    slots=[slot for slot, _ in planned.seen] + [0] * (planned.handle is not None),
                )  # fmt: skip
            placed.append(probe)
            also = []
        link = self._link_outputs(graph, frame, steps)
        graph.control_outputs.extend([*placed, *([link] if link is not None else [])])

    def _link_outputs(self, graph: Any, frame: Any, steps: Plan) -> tf.Operation | None:
        """Tell where the outputs lie before anyone is handed them."""
        told: list[tuple[Any, int]] = []
        gates: list[tf.Operation] = []
        for tensor in graph.outputs:
            op = tensor.op
            # What tracing appends to hand out a value: nothing in the graph waits for it.
            if op.type == "Identity" and not tensor.consumers():
                gates.append(op)
                tensor = op.inputs[0]  # noqa: PLW2901
            told.append((tensor, steps.code(tensor)))
        values, codes = _linked(told)
        if not values:
            return None
        link = self._recorder.ops.trace_lens_link(frame, values, codes)
        for op in dict.fromkeys(gates):
            op._add_control_input(link)
        return link


_known: weakref.WeakKeyDictionary[Any, Probed] = weakref.WeakKeyDictionary()


def _linked(pairs: list[tuple[Any, int]]) -> tuple[list[Any], list[int]]:
    """Return those of the tensors that lie in memory of their own, and their codes."""
    kept = [(tensor, code) for tensor, code in pairs if tensor.dtype.name != "resource"]
    return [tensor for tensor, _ in kept], [code for _, code in kept]


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
    if tensor.dtype.name in ("resource", "variant") or tensor.shape.rank is None:
        return None
    return [tensor.dtype.name, [-1 if n is None else n for n in tensor.shape.as_list()], "cpu"]


def _functions_of(op: tf.Operation) -> list[str]:
    if op.type in optables.CALLS:
        return [op.get_attr("f").name]
    if op.type in optables.LOOPS:
        return [op.get_attr("body").name]
    if op.type.endswith("Case"):
        return [function.name for function in op.get_attr("branches")]
    return [op.get_attr("then_branch").name, op.get_attr("else_branch").name]


def _has_frame(graph: Any, name: str) -> bool:
    definition: Callable[[], Any] = graph._get_function(name).cached_definition
    return any(node.op == "TraceLensFrame" for node in definition.node_def)  # type: ignore[attr-defined]
