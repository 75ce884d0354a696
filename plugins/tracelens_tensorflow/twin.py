"""Builds the twin of a traced function: the same computation with checks beside it.

The program's own functions and graphs stay as they are. A twin is made from the function's
definition, the functions it calls included, and runs in its place while a session records. So
functions that were traced before, or loaded from a SavedModel, are checked as well, and nothing
is left behind in what the program keeps.

Where XLA does not compile, a check is TraceLens's own op if that could be compiled. Elsewhere a
function gets one output more: a vector of sums, one for each tensor checked, which is not finite
where the tensor is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2
from tensorflow.python.eager import record
from tensorflow.python.eager.polymorphic_function import atomic_function
from tensorflow.python.ops import handle_data_util

from tracelens_tensorflow import effects, fdef, optables
from tracelens_tensorflow.fdef import FLAGS, PREFIX, Editor
from tracelens_tensorflow.frontier import Level, Place, choose
from tracelens_tensorflow.slots import slots
from tracelens_tensorflow.staging import Area, stage
from tracelens_tensorflow.variables import variables_of

CHECK_OP = "TraceLensCheck"

_XLA = "_XlaMustCompile"
_numbers = itertools.count()

SinksOf = Callable[[Any, Editor, bool], Mapping[int, tuple[Any, str, str]]]
"""Gives the sinks of a graph by ``id`` of the tensor; the flag: the program itself calls it."""


class TwinFunction(atomic_function.AtomicFunction):
    """A function in the runtime whose errors tell the places of the one it stands for.

    Attributes:
        original: the function it stands for.
    """

    original: Any

    @property
    def graph_debug_info(self) -> Any:
        """Return where the original's ops were made."""
        return self.original.graph_debug_info

    def run(self, args: list[Any], count: int) -> list[Any]:
        """Run eagerly, as ``call_flat`` does.

        Args:
            args: flat, captures included.
            count: of the outputs.

        Returns:
            The outputs of the original, then the twin's own.
        """
        with atomic_function.InterpolateRuntimeError(self), record.stop_recording():
            outputs = self._bound_context.call_function(self.name, args, count)
        outputs = list(outputs) if isinstance(outputs, list | tuple) else []
        for output, kind in zip(outputs, self.function_type.flat_outputs, strict=False):
            handle_data = kind.dtype._handle_data
            if handle_data:
                handle_data_util.set_handle_data(output, handle_data.shape_inference)
        return outputs


@dataclass
class Part:
    """The twin of one function.

    Attributes:
        original: the function it stands for.
        xla: it is compiled by XLA.
        function: the twin in the runtime; None if there is nothing to check.
        vector: numbers of the checks in its vector of sums.
        kept: outputs that it returns besides, for a replay: op, reference, dtype. An op has as
            many entries in a row as it has outputs, again for each time that it is called.
        staged: where the outputs of ops in loops and branches are left for a replay.
        writes: it writes a trainable variable, or calls a function that does.
        checks: how many tensors are looked at, called functions included.
        sinks: numbers of the checks that look at sinks, called functions included.
    """

    original: Any
    xla: bool
    function: TwinFunction | None = None
    vector: list[int] = field(default_factory=list)
    kept: list[tuple[tf.Operation, str, tf.DType]] = field(default_factory=list)
    staged: list[Area] = field(default_factory=list)
    writes: bool = False
    checks: int = 0
    sinks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Where:
    """Where a function is called.

    Attributes:
        xla: in what XLA compiles.
        loop: it is the body of a loop, so its vector adds to that of the iteration before.
        keeping: what it returns for a replay reaches the program's call.
        top: the program calls it.
    """

    xla: bool = False
    loop: bool = False
    keeping: bool = True
    top: bool = False


class Builder:
    """Builds the twins of a function and of those it calls.

    Args:
        sinks_of: the sinks of a graph.
        level: how much is checked.
        native: use TraceLens's own op where XLA does not compile.
    """

    def __init__(self, sinks_of: SinksOf, level: Level, native: bool) -> None:
        self._sinks_of = sinks_of
        self._level = level
        self._native = native
        self._children: dict[str, Any] = {}
        self._parts: dict[tuple[str, _Where], Part | None] = {}
        self._made: list[TwinFunction] = []

    def build(self, function: Any) -> Part:
        """Return the twin of a function that the program calls.

        Args:
            function: an ``AtomicFunction``.
        """
        self._children, self._parts, self._made = {}, {}, []
        self._collect(function)
        return self._make(function, _Where(top=True))

    def _collect(self, function: Any) -> None:
        for child in getattr(function, "children", ()):
            name = fdef.text(child.name)
            if name not in self._children:
                self._children[name] = child
                self._collect(child)

    def _child(self, name: str, where: _Where) -> Part | None:
        key = (name, where)
        if key not in self._parts:
            self._parts[key] = None  # A function that calls itself is not followed further.
            child = self._children.get(name)
            if child is not None:
                self._parts[key] = self._make(child, where)
        return self._parts[key]

    def _make(self, function: Any, where: _Where) -> Part:
        graph = function.graph
        editor = Editor(function.definition, graph)
        part = Part(function, where.xla or fdef.is_true(editor.definition.attr, _XLA))
        top, where = where.top, replace(where, xla=part.xla, top=False)
        live = editor.live_ops()
        kept = {id(op) for op in effects.ops_to_keep(graph)}
        vectors: list[str] = []
        called: set[str] = set()
        for op in live:
            if fdef.called_by(op) and self._call(editor, op, part, where, vectors):
                called.add(op.name)
            elif id(op) in kept and not part.xla and not where.keeping:
                part.staged.append(stage(editor, op))
            elif id(op) in kept and not part.xla:
                part.kept += [(op, editor.ref(t), t.dtype) for t in op.outputs]
        sinks = self._sinks_of(graph, editor, top)
        places = [p for p in choose(live, sinks, self._level, called) if editor.has(p.tensor)]
        numbers = [slots.add(graph, place) for place in places]
        if self._native and not part.xla:
            _check_by_op(editor, places, numbers)
        elif places:
            part.vector[:0] = numbers
            vectors.insert(0, editor.vector_of([place.tensor for place in places]))
        part.checks += len(places)
        part.sinks += [n for n, place in zip(numbers, places, strict=True) if place.sink]
        part.writes = part.writes or _writes_trainable(graph, live)
        if vectors:
            flags = editor.joined(vectors)
            editor.add_output(FLAGS, editor.accumulated(flags) if where.loop else flags, tf.float32)
        for _, ref, dtype in part.kept:
            editor.add_output(f"{PREFIX}kept", ref, dtype)
        if places or called or part.kept or part.staged:
            part.function = self._register(editor, function)
        return part

    def _call(self, editor: Editor, op: Any, part: Part, where: _Where, vectors: list[str]) -> bool:
        """Let an op that calls functions call their twins; return whether it does."""
        node, names = editor.node(op.name), fdef.called_by(op)
        inner = replace(
            where,
            xla=where.xla or fdef.is_true(node.attr, _XLA),
            loop=op.type in optables.LOOPS,
            keeping=where.keeping and op.type in optables.CALLS,
        )
        children = [
            (attribute, place, self._child(name, inner))
            for attribute, many in names.items()
            for place, name in enumerate(many)
            if attribute != "cond"
        ]
        twins = [twin for _, _, twin in children if twin is not None]
        part.writes = part.writes or any(twin.writes for twin in twins)
        if all(twin.function is None for twin in twins):
            return False
        size = sum(len(twin.vector) for twin in twins)
        at = 0
        for attribute, place, twin in children:
            function = twin.function if twin else None
            if size and op.type in optables.BRANCHES:
                own = len(twin.vector) if twin else 0
                function = function or self._children[names[attribute][place]]
                function = self._branch(function, at, own, size)
                at += own
            if function is not None:
                fdef.set_called(node, attribute, place, fdef.text(function.name))
        if not part.xla:
            fdef.make_stateful(node)
            editor.keep(node.name)
        for twin in twins:
            part.checks += twin.checks
            part.sinks += twin.sinks
            part.vector += twin.vector
            part.staged += twin.staged
        if size and op.type in optables.LOOPS:
            vectors.append(editor.add_loop_value(node, size))
            fdef.set_called(node, "cond", 0, self._condition(names["cond"][0]))
        elif size:
            vectors.append(editor.add_call_output(node, tf.float32, [size]))
        for twin in twins if op.type in optables.CALLS else ():
            for kept, _, dtype in twin.kept:
                part.kept.append((kept, editor.add_call_output(node, dtype, None), dtype))
        return True

    def _condition(self, name: str) -> str:
        """Return a loop's condition that takes the loop's vector, and does not look at it."""
        original = self._children[name]
        editor = Editor(original.definition, None)
        editor.add_input(FLAGS, tf.float32)
        return fdef.text(self._register(editor, original).name)

    def _branch(self, function: Any, at: int, inner: int, size: int) -> TwinFunction:
        """Return a branch whose vector has room for those of the other branches."""
        editor = Editor(function.definition, None)
        editor.pad_flags(at, inner, size - at - inner)
        return self._register(editor, getattr(function, "original", function))

    def _register(self, editor: Editor, original: Any) -> TwinFunction:
        """Add an edited definition to the runtime."""
        definition = editor.definition
        definition.signature.name = f"{fdef.text(original.name)}_tl{next(_numbers)}"
        original._bound_context.add_function_def(definition)
        twin = TwinFunction(
            definition.signature.name,
            original._bound_context,
            original.function_type,
            children=list(self._made),
            call_options=original.call_options,
            cached_graph=original.graph,
        )
        twin.original = original
        self._made.append(twin)
        return twin


def _check_by_op(editor: Editor, places: list[Place], numbers: list[int]) -> None:
    for place, number in zip(places, numbers, strict=True):
        node = node_def_pb2.NodeDef(name=f"{PREFIX}check_{number}", op=CHECK_OP)
        node.input.append(editor.ref(place.tensor))
        node.device = place.tensor.op.device
        node.attr["T"].list.type.append(place.tensor.dtype.as_datatype_enum)
        node.attr["slots"].list.i.append(number)
        editor.add_node(node)
        editor.keep(node.name)


def _writes_trainable(graph: Any, live: list[Any]) -> bool:
    written = [op.inputs[0] for op in live if optables.writes(op)]
    if not written:
        return False
    variables = variables_of(graph)
    found = [variables.get(id(handle)) for handle in written]
    return any(variable is not None and variable.trainable for variable in found)
