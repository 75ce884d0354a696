"""Which tensors of a graph are sinks, and how they are called."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tracelens_tensorflow import optables
from tracelens_tensorflow.fdef import Editor
from tracelens_tensorflow.marks import Sink, marks_of
from tracelens_tensorflow.variables import name_of, variables_of

_BACKWARD = "__backward_"


def sinks_of(graph: Any, editor: Editor, top: bool) -> dict[int, Sink]:
    """Return the sinks of a graph by ``id`` of the tensor.

    They are what a tape was asked for (loss, gradients), what is written into variables, and,
    of a function that the program calls itself, what it returns.

    Args:
        graph: the graph.
        editor: the definition made from it.
        top: the program calls the function itself.
    """
    sinks = {key: sink for key, sink in marks_of(graph).items() if editor.has(sink[0])}
    _add_written(graph, editor, sinks)
    if top:
        _add_outputs(graph, editor, sinks)
    return sinks


def _add_written(graph: Any, editor: Editor, sinks: dict[int, Sink]) -> None:
    variables: dict[int, Any] | None = None
    for op in graph.get_operations():
        if not optables.writes(op) or editor.node(op.name) is None:
            continue
        if variables is None:
            variables = variables_of(graph)
        variable = variables.get(id(op.inputs[0]))
        name = name_of(variable) if variable is not None else op.inputs[0].op.name
        for tensor in optables.written_values(op):
            if id(tensor) not in sinks and tensor.op.type != "Const":
                sinks[id(tensor)] = (tensor, "parameter", name)


def _add_outputs(graph: Any, editor: Editor, sinks: dict[int, Sink]) -> None:
    function = editor.definition.signature.name
    backward = function.startswith(_BACKWARD)
    names = _output_names(graph)
    count = len(editor.definition.signature.output_arg)
    # A function that a tape watches returns what its backward needs besides.
    asked = len(names) if names and not backward else count
    for place, tensor in enumerate(graph.outputs[:count]):
        if place >= asked or tensor.op.type == "Const" or id(tensor) in sinks:
            continue
        if backward:
            sinks[id(tensor)] = (tensor, "gradient", f"input {place}")
        else:
            sinks[id(tensor)] = (tensor, "output", names[place] if names else f"output {place}")


def _output_names(graph: Any) -> list[str]:
    """Return a name for each tensor that a function returns."""
    structure = getattr(graph, "structured_outputs", None)
    if structure is None:
        return []
    if isinstance(structure, tf.Tensor):
        return ["output"]
    try:
        flat = tf.nest.flatten(structure, expand_composites=True)
        named = [leaf for leaf in flat if leaf is not None]
        if isinstance(structure, dict) and len(named) == len(structure):
            return [str(key) for key in sorted(structure)]
    except (TypeError, ValueError):
        return []
    return [f"output {place}" if len(named) > 1 else "output" for place in range(len(named))]
