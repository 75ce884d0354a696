"""Turns a FuncGraph into a list of instructions that the interpreter runs eagerly.

A plan holds only ops that the runtime would run: those that an output, a control output or a
side effect needs. Constants are made once. Each instruction names the slots of a frame that it
reads and writes, and those that nothing reads afterwards, so that memory stays bounded.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager import context
from tensorflow.python.framework import function_def_to_graph, tensor_util

from tracelens_tensorflow import spans

RUN, CALL, WHILE, IF, CASE, CONST = range(6)
"""Kinds of instructions: a plain op, and those that run graphs of their own."""

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall", "TPUPartitionedCall"})
_KINDS = {
    **dict.fromkeys(_CALLS, CALL),
    "While": WHILE,
    "StatelessWhile": WHILE,
    "If": IF,
    "StatelessIf": IF,
    "Case": CASE,
    "StatelessCase": CASE,
}
_CONTROL_FLOW_V1 = frozenset(
    {"Switch", "Merge", "Enter", "Exit", "NextIteration", "LoopCond", "RefSwitch", "RefMerge",
     "RefEnter", "RefExit", "RefNextIteration", "Variable", "VariableV2", "TemporaryVariable"}
)  # fmt: skip
_PURE_STATEFUL = frozenset(
    {"ReadVariableOp", "VarHandleOp", "VarIsInitializedOp", "VariableShape", "ResourceGather",
     "ResourceGatherNd", "Placeholder", "PlaceholderWithDefault", "IsVariableInitialized",
     "RandomUniform", "RandomStandardNormal", "RandomUniformInt", "TruncatedNormal",
     "RandomGamma", "RandomPoissonV2", "Multinomial", "RandomShuffle",
     "ParameterizedTruncatedNormal", "RandomGammaGrad", "StatelessWhile", "StatelessIf"}
)  # fmt: skip
"""Stateful ops that change nothing anybody could see if their output is not used."""

_GRADIENT = re.compile(r"(^|/)gradient(s|_tape)(_\d+)?/")

MAX_CONSTANT_BYTES = 64 << 20
"""Constants of a plan that are kept ready; larger ones are made anew for each run."""


class NotInterpretable(Exception):
    """A graph holds something that cannot be run op by op; the message is one clause."""


class Instruction(NamedTuple):
    """One op of a plan.

    Attributes:
        kind: ``RUN``, ``CALL``, ``WHILE``, ``IF``, ``CASE`` or ``CONST``.
        op: the graph's op.
        op_type: its type.
        inputs: slots of its inputs.
        attrs: alternating names and values, as the eager runtime takes them.
        n_outputs: how many outputs it has.
        base: slot of its first output.
        device: the device asked for, ``None`` for the runtime's choice.
        dead: slots that hold nothing anybody reads after it.
        graphs: names of the functions it runs: callee; condition and body; branches.
    """

    kind: int
    op: tf.Operation
    op_type: str
    inputs: tuple[int, ...]
    attrs: tuple[Any, ...]
    n_outputs: int
    base: int
    device: str | None
    dead: tuple[int, ...]
    graphs: tuple[str, ...]


class Plan:
    """The instructions of one FuncGraph.

    Attributes:
        graph: the graph.
        instructions: in the order in which they run.
        frame: the values a run begins with: constants, else ``None``.
        inputs: slots of the graph's inputs.
        outputs: slots of its outputs.
        constants: constants and their values, for those who record them.
        notes: what others have found out about the graph.
    """

    def __init__(self, graph: Any, n_outputs: int | None = None) -> None:
        self.graph = graph
        self._version = _version(graph)
        wanted = graph.outputs[:n_outputs]
        ops = _needed(graph, wanted)
        slots: dict[int, int] = {}
        count = 0
        for tensor in graph.inputs:
            slots[id(tensor)] = count
            count += 1
        self.inputs = range(count)
        given = {id(tensor.op) for tensor in graph.inputs}
        ops = [op for op in ops if id(op) not in given]
        for op in ops:
            for tensor in op.outputs:
                slots[id(tensor)] = count
                count += 1
        self.frame: list[Any] = [None] * count
        self.outputs = tuple(slots[id(tensor)] for tensor in wanted)
        self.constants: list[tuple[tf.Operation, Any]] = []
        self.instructions: list[Instruction] = self._compile(ops, slots)
        self._callees: dict[tuple[str, int | None], Plan] = {}
        self.notes: dict[str, Any] = {}

    def current(self) -> bool:
        """Tell whether the graph has no ops, inputs or outputs that the plan does not know."""
        return _version(self.graph) == self._version

    def callee(self, name: str, n_outputs: int | None = None) -> Plan:
        """Return the plan of a function that an op of this graph runs.

        Args:
            name: the function's name.
            n_outputs: how many outputs are wanted.

        Raises:
            NotInterpretable: the function is unknown or cannot be run op by op.
        """
        plan = self._callees.get((name, n_outputs))
        if plan is None or not plan.current():
            graph = graph_of_function(self.graph, name)
            plan = self._callees[name, n_outputs] = plan_of(graph, n_outputs)
        return plan

    def _compile(self, ops: list[tf.Operation], slots: dict[int, int]) -> list[Instruction]:
        reads = [tuple(slots[id(tensor)] for tensor in op.inputs) for op in ops]
        last: dict[int, int] = {}
        for index, read in enumerate(reads):
            for slot in read:
                last[slot] = index
        kept = set(self.outputs)
        instructions = []
        room = MAX_CONSTANT_BYTES
        for index, op in enumerate(ops):
            base = slots[id(op.outputs[0])] if op.outputs else 0
            if op.type == "Const":
                value = constant_of(op)
                room -= _size(value)
                if room >= 0:
                    self.constants.append((op, value))
                    self.frame[base] = value
                    kept.add(base)
                    continue
            written = range(base, base + len(op.outputs))
            dead = {slot for slot in reads[index] if last[slot] == index}
            dead.update(slot for slot in written if slot not in last)
            instructions.append(_instruction(op, reads[index], base, tuple(dead - kept)))
        return instructions


def plan_of(graph: Any, n_outputs: int | None = None) -> Plan:
    """Return the plan of a FuncGraph, made anew only if ops were added since.

    Args:
        graph: the graph.
        n_outputs: how many of its outputs are wanted. A graph is given further outputs when its
            gradient is made, which the functions made from it before do not have.

    Raises:
        NotInterpretable: it holds control flow of TensorFlow 1 or reference variables.
    """
    plans = getattr(graph, "_tracelens_plans", None)
    if plans is None:
        plans = graph._tracelens_plans = {}
    if n_outputs is not None and n_outputs >= len(graph.outputs):
        n_outputs = None
    plan = plans.get(n_outputs)
    if plan is None or not plan.current():
        plan = plans[n_outputs] = Plan(graph, n_outputs)
    return plan


def graph_of_function(graph: Any, name: str) -> Any:
    """Return the FuncGraph of a function that an op of a graph refers to by name.

    The graph that was traced is preferred: its ops know the user's lines. What exists only in
    the runtime (a loaded model, a function of a library) is rebuilt from its definition.

    Raises:
        NotInterpretable: nothing of that name is known.
    """
    at: Any = graph
    while at is not None:
        function = at._get_function(name)
        if function is not None and getattr(function, "graph", None) is not None:
            return spans.called_in(function.graph, graph, name)
        at = getattr(at, "outer_graph", None)
    try:
        definition = context.context().get_function_def(name)
    except Exception:
        raise NotInterpretable(f"the function {name} is unknown to the runtime") from None
    rebuilt = getattr(graph, "_tracelens_functions", None)
    if rebuilt is None:
        rebuilt = graph._tracelens_functions = {}
    if name not in rebuilt:
        rebuilt[name] = function_def_to_graph.function_def_to_graph(definition)
    return spans.called_in(rebuilt[name], graph, name)


def graphs_of(graph: Any) -> Iterator[Any]:
    """Yield a graph and the graphs of the functions that it calls, as far as they are known."""
    waiting, seen = [graph], {id(graph)}
    while waiting:
        at = waiting.pop()
        yield at
        for name in (name for op in at.get_operations() for name in functions_of(op)):
            try:
                called = graph_of_function(at, name)
            except NotInterpretable:
                continue
            if id(called) not in seen:
                seen.add(id(called))
                waiting.append(called)


def functions_of(op: tf.Operation) -> tuple[str, ...]:
    """Return the names of the functions that a call, loop or branch runs, in order."""
    kind = _KINDS.get(op.type)
    if kind is None:
        return ()
    attrs = op.node_def.attr
    if kind == CALL:
        return (attrs["f"].func.name,)
    if kind == WHILE:
        return attrs["cond"].func.name, attrs["body"].func.name
    if kind == IF:
        return attrs["then_branch"].func.name, attrs["else_branch"].func.name
    return tuple(branch.name for branch in attrs["branches"].list.func)


def constant_of(op: tf.Operation) -> Any:
    """Return the value of a ``Const`` op as an eager tensor."""
    proto = op.node_def.attr["value"].tensor
    with context.eager_mode():
        return tf.constant(tensor_util.MakeNdarray(proto), dtype=tf.as_dtype(proto.dtype))


def attributes_of(op: tf.Operation) -> tuple[Any, ...]:
    """Return an op's attributes as the eager runtime takes them, names and values in turn."""
    given = op.node_def.attr
    pairs: list[Any] = []
    for definition in op.op_def.attr:
        if definition.name in given:
            value = _value(given[definition.name], definition.type)
            pairs += (definition.name, value)
    return tuple(pairs)


def _instruction(
    op: tf.Operation, inputs: tuple[int, ...], base: int, dead: tuple[int, ...]
) -> Instruction:
    if op.type in _CONTROL_FLOW_V1:
        raise NotInterpretable(f"{op.type} ({op.name}) is control flow or a variable of TF1")
    kind = CONST if op.type == "Const" else _KINDS.get(op.type, RUN)
    attrs = attributes_of(op) if kind == RUN else ()
    return Instruction(
        kind, op, op.type, inputs, attrs, len(op.outputs), base, op.device or None, dead,
        functions_of(op),
    )  # fmt: skip


def _needed(graph: Any, outputs: Iterable[tf.Tensor]) -> list[tf.Operation]:
    """Return the ops that the runtime would run, producers first."""
    ops = graph.get_operations()
    roots = [tensor.op for tensor in outputs]
    roots += graph.control_outputs
    roots += [op for op in ops if op.op_def.is_stateful and op.type not in _PURE_STATEFUL]
    seen = {id(op) for op in roots}
    todo = list(roots)
    while todo:
        op = todo.pop()
        for producer in (*(tensor.op for tensor in op.inputs), *op.control_inputs):
            if id(producer) not in seen:
                seen.add(id(producer))
                todo.append(producer)
    return _sorted([op for op in ops if id(op) in seen])


def _sorted(ops: list[tf.Operation]) -> list[tf.Operation]:
    """Return ops with producers before consumers; an imported graph may list them otherwise."""
    place = {id(op): index for index, op in enumerate(ops)}
    before = [
        {place[id(p)] for p in (*(t.op for t in op.inputs), *op.control_inputs) if id(p) in place}
        for op in ops
    ]
    if all(p < index for index, producers in enumerate(before) for p in producers):
        return ops
    after: list[list[int]] = [[] for _ in ops]
    for index, producers in enumerate(before):
        for producer in producers:
            after[producer].append(index)
    waiting = [len(producers) for producers in before]
    # A gradient waits for every forward op that can run, so that causes come before echoes.
    late = [_GRADIENT.search(op.name) is not None for op in ops]
    ready = [(late[index], index) for index, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, index = heapq.heappop(ready)
        order.append(ops[index])
        for consumer in after[index]:
            waiting[consumer] -= 1
            if not waiting[consumer]:
                heapq.heappush(ready, (late[consumer], consumer))
    if len(order) < len(ops):
        raise NotInterpretable("the graph has a cycle, as loops of TF1 do")
    return order


def _size(tensor: Any) -> int:
    return int(tensor.shape.num_elements() or 0) * max(tensor.dtype.size or 0, 1)


def _version(graph: Any) -> tuple[int, int, int]:
    return graph.num_operations(), len(graph.inputs), len(graph.outputs)


def _shape(value: Any) -> Any:
    if value.unknown_rank:
        return None
    return [None if dim.size < 0 else dim.size for dim in value.dim]


_SCALARS: dict[str, Callable[[attr_value_pb2.AttrValue], Any]] = {
    "type": lambda value: value.type,
    "int": lambda value: value.i,
    "float": lambda value: value.f,
    "bool": lambda value: value.b,
    "string": lambda value: value.s,
    "shape": lambda value: _shape(value.shape),
    "func": lambda value: value.func.name,
    "tensor": lambda value: value.tensor,
}
_LISTS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "list(type)": lambda value: value.type,
    "list(int)": lambda value: value.i,
    "list(float)": lambda value: value.f,
    "list(bool)": lambda value: value.b,
    "list(string)": lambda value: value.s,
    "list(shape)": lambda value: [_shape(shape) for shape in value.shape],
    "list(func)": lambda value: [function.name for function in value.func],
    "list(tensor)": lambda value: value.tensor,
}


def _value(value: attr_value_pb2.AttrValue, kind: str) -> Any:
    read = _SCALARS.get(kind)
    if read is not None:
        return read(value)
    return list(_LISTS[kind](value.list))
