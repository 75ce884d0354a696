"""Edits a function's definition: reads which function a node calls, adds nodes and outputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import function_pb2, node_def_pb2, op_def_pb2
from tensorflow.python.framework import tensor_util

from tracelens_tensorflow import optables

PREFIX = "tracelens_"
FLAGS = f"{PREFIX}flags"

_numbers = itertools.count()

_CALLED = {
    **dict.fromkeys(optables.CALLS, ("f",)),
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
    **dict.fromkeys(("Case", "StatelessCase"), ("branches",)),
    **dict.fromkeys(optables.LOOPS, ("cond", "body")),
}
_STATEFUL = {
    "PartitionedCall": "StatefulPartitionedCall",
    "StatelessIf": "If",
    "StatelessCase": "Case",
    "StatelessWhile": "While",
}


def text(name: bytes | str) -> str:
    """Return a function's name as text."""
    return name.decode() if isinstance(name, bytes) else name


def is_true(attributes: Any, name: str) -> bool:
    """Tell whether a definition or node has a boolean attribute that is set."""
    return name in attributes and bool(attributes[name].b)


def called_by(op: tf.Operation) -> dict[str, list[str]]:
    """Return the functions that an op calls, by the attribute that names them."""
    found: dict[str, list[str]] = {}
    for attribute in _CALLED.get(op.type, ()):
        value = op.node_def.attr[attribute]
        many = value.list.func if attribute == "branches" else [value.func]
        found[attribute] = [function.name for function in many]
    return found


def set_called(node: Any, attribute: str, place: int, name: str) -> None:
    """Make a node call another function."""
    value = node.attr[attribute]
    (value.list.func[place] if attribute == "branches" else value.func).name = name


def make_stateful(node: Any) -> None:
    """Make a node that calls functions one that is not left out for having no state."""
    node.op = _STATEFUL.get(node.op, node.op)


class Editor:
    """A function's definition while it is edited.

    Args:
        definition: changed in place.
        graph: the graph it was made from, which may have grown since; None if it is not read.
    """

    def __init__(self, definition: function_pb2.FunctionDef, graph: Any) -> None:
        self.definition = definition
        self._graph = graph
        self._nodes = {node.name: node for node in definition.node_def}
        arguments = [argument.name for argument in definition.signature.input_arg]
        inputs = zip(graph.inputs if graph is not None else (), arguments, strict=False)
        self._arguments = {id(tensor): name for tensor, name in inputs}

    # Reading

    def node(self, name: str) -> Any:
        """Return a node by name, None if the definition does not have it."""
        return self._nodes.get(name)

    def has(self, tensor: tf.Tensor) -> bool:
        """Tell whether the definition has a tensor of the graph."""
        return id(tensor) in self._arguments or tensor.op.name in self._nodes

    def ref(self, tensor: tf.Tensor) -> str:
        """Return how nodes of the definition refer to a tensor of the graph."""
        argument = self._arguments.get(id(tensor))
        if argument is not None:
            return argument
        op, index = tensor.op, tensor.value_index
        node = self._nodes[op.name]
        for output in op.op_def.output_arg:
            count = _count(output, node)
            if index < count:
                return f"{op.name}:{output.name}:{index}"
            index -= count
        raise ValueError(f"{tensor.name} is no output of its op")

    def live_ops(self) -> list[Any]:
        """Return the graph's ops that matter to the function's results, producers first."""
        definition = self.definition
        waiting = [ref.partition(":")[0] for ref in definition.ret.values()]
        waiting += definition.control_ret.values()
        live: set[str] = set()
        while waiting:
            name = waiting.pop()
            node = self._nodes.get(name)
            if node is None or name in live:
                continue
            live.add(name)
            waiting += [ref.lstrip("^").partition(":")[0] for ref in node.input]
        ops = self._graph.get_operations()
        return [op for op in ops if op.name in live and self._nodes[op.name].op == op.type]

    # Adding

    def add_node(self, node: node_def_pb2.NodeDef) -> str:
        """Add a node; return its name."""
        self.definition.node_def.append(node)
        return str(node.name)

    def keep(self, name: str) -> None:
        """Make the function run a node that none of its outputs needs."""
        if name not in self.definition.control_ret:
            self.definition.signature.control_output.append(name)
            self.definition.control_ret[name] = name
        self.definition.signature.is_stateful = True

    def add_output(self, name: str, ref: str, dtype: tf.DType) -> None:
        """Add an output to the function."""
        outputs = self.definition.signature.output_arg
        unique = f"{name}_{len(outputs)}"
        outputs.append(op_def_pb2.OpDef.ArgDef(name=unique, type=dtype.as_datatype_enum))
        self.definition.ret[unique] = ref

    def add_input(self, name: str, dtype: tf.DType) -> str:
        """Add an input to the function; return its name."""
        inputs = self.definition.signature.input_arg
        inputs.append(op_def_pb2.OpDef.ArgDef(name=name, type=dtype.as_datatype_enum))
        return name

    def simple(
        self, op: str, inputs: Sequence[str], output: str, device: str = "", **attributes: Any
    ) -> str:
        """Add a node; return the reference to its output.

        Args:
            op: the op.
            inputs: references.
            output: name of the op's output.
            device: where it runs.
            **attributes: dtypes, integers, booleans or arrays.
        """
        node = node_def_pb2.NodeDef(name=f"{PREFIX}{op}_{next(_numbers)}", op=op, device=device)
        node.input.extend(inputs)
        for name, value in attributes.items():
            if isinstance(value, tf.DType):
                node.attr[name].type = value.as_datatype_enum
            elif isinstance(value, bool):
                node.attr[name].b = value
            elif isinstance(value, int):
                node.attr[name].i = value
            else:
                node.attr[name].tensor.CopyFrom(value)
        self.add_node(node)
        return f"{node.name}:{output}:0"

    def constant(self, value: Any, dtype: tf.DType, device: str = "") -> str:
        """Add a constant; return the reference to it."""
        proto = tensor_util.make_tensor_proto(value, dtype=dtype)
        return self.simple("Const", (), "output", device, value=proto, dtype=dtype)

    # Vectors of sums

    def vector_of(self, tensors: Sequence[tf.Tensor]) -> str:
        """Add a vector with a sum for each tensor, not finite where the tensor is not."""
        sums = [self._sum(tensor) for tensor in tensors]
        return self.simple("Pack", sums, "output", N=len(sums), T=tf.float32, axis=0)

    def joined(self, vectors: Sequence[str]) -> str:
        """Add the concatenation of vectors."""
        if len(vectors) == 1:
            return vectors[0]
        axis = self.constant(0, tf.int32)
        return self.simple(
            "ConcatV2", [*vectors, axis], "output", N=len(vectors), T=tf.float32, Tidx=tf.int32
        )

    def accumulated(self, vector: str) -> str:
        """In a loop's body: add to the vector those of the iterations before."""
        before = self.add_input(f"{PREFIX}flags_in", tf.float32)
        return self.simple("AddV2", [before, vector], "z", T=tf.float32)

    def pad_flags(self, before: int, size: int, after: int) -> None:
        """Put zeros before and after the vector that a branch returns, those of other branches.

        Args:
            before: how many before.
            size: how long the vector is; 0 if the branch has none.
            after: how many after.
        """
        parts = [self.constant([0.0] * before, tf.float32)] if before else []
        output = self.definition.signature.output_arg[-1].name if size else ""
        parts += [self.definition.ret[output]] if size else []
        parts += [self.constant([0.0] * after, tf.float32)] if after else []
        if size:
            self.definition.ret[output] = self.joined(parts)
        else:
            self.add_output(FLAGS, self.joined(parts), tf.float32)

    def add_call_output(self, node: Any, dtype: tf.DType, shape: Any) -> str:
        """Give a node that calls functions one output more; return the reference to it."""
        place = len(node.attr["Tout"].list.type)
        node.attr["Tout"].list.type.append(dtype.as_datatype_enum)
        if "output_shapes" in node.attr:
            node.attr["output_shapes"].list.shape.append(tf.TensorShape(shape).as_proto())
        return f"{node.name}:output:{place}"

    def add_loop_value(self, node: Any, size: int) -> str:
        """Give a loop one value more: the vector; return the reference to its last one."""
        place = len(node.attr["T"].list.type)
        zeros = self.constant([0.0] * size, tf.float32)
        data = [ref for ref in node.input if not ref.startswith("^")]
        control = [ref for ref in node.input if ref.startswith("^")]
        del node.input[:]
        node.input.extend([*data, zeros, *control])
        node.attr["T"].list.type.append(tf.float32.as_datatype_enum)
        if "output_shapes" in node.attr:
            node.attr["output_shapes"].list.shape.append(tf.TensorShape([size]).as_proto())
        return f"{node.name}:output:{place}"

    def _sum(self, tensor: tf.Tensor) -> str:
        ref, dtype, device = self.ref(tensor), tensor.dtype, tensor.op.device
        if dtype.is_complex:
            real = tf.float32 if dtype == tf.complex64 else tf.float64
            ref = self.simple("ComplexAbs", [ref], "y", device, T=dtype, Tout=real)
            dtype = real
        if dtype.size < 4:  # A sum in 16 bits would overflow by itself.
            ref = self.simple("Cast", [ref], "y", device, SrcT=dtype, DstT=tf.float32)
            dtype = tf.float32
        if tensor.shape.rank is None:
            ref = self.simple("L2Loss", [ref], "output", device, T=dtype)
        elif tensor.shape.rank:
            axes = self.constant(list(range(tensor.shape.rank)), tf.int32, device)
            ref = self.simple(
                "Sum", [ref, axes], "output", device, T=dtype, Tidx=tf.int32, keep_dims=False
            )
        if dtype != tf.float32:
            ref = self.simple("Cast", [ref], "y", device, SrcT=dtype, DstT=tf.float32)
        return ref


def _count(output: Any, node: Any) -> int:
    if output.number_attr:
        return int(node.attr[output.number_attr].i)
    if output.type_list_attr:
        return len(node.attr[output.type_list_attr].list.type)
    return 1
