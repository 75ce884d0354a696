"""Which variable a graph writes to, and what it is called."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_names: dict[int, str] = {}
"""By ``_id`` of a variable's handle, which is never used again."""

_MAX_NAMES = 1 << 16


def name_variables(variables: Any, prefix: str = "") -> None:
    """Remember the names of a model's variables.

    Args:
        variables: Keras variables, which know their place in the model, or TensorFlow's own.
        prefix: put before each name.
    """
    for variable in variables:
        value = variable if isinstance(variable, tf.Variable) else getattr(variable, "value", None)
        path = getattr(variable, "path", "") or (prefix and str(variable.name).removesuffix(":0"))
        handle = getattr(value, "handle", None) if isinstance(value, tf.Variable) else None
        if path and hasattr(handle, "_id") and len(_names) < _MAX_NAMES:
            _names[handle._id] = prefix + path


def name_of(variable: Any) -> str:
    """Return the name of a variable, as the program knows it."""
    known = _names.get(getattr(getattr(variable, "handle", None), "_id", -1))
    return known or str(getattr(variable, "path", "") or variable.name).removesuffix(":0")


def externals(graph: Any) -> dict[int, Any]:
    """Return what a graph's inputs stand for outside of it, by ``id`` of the input."""
    captures = getattr(graph, "captures", ())
    return {id(internal): external for external, internal in captures}


def variables_of(graph: Any) -> dict[int, Any]:
    """Return the variables that a graph and the graphs around it use, by ``id`` of the input.

    An input of a loop's body that stands for a variable is followed out of the loop.
    """
    by_handle: dict[int, Any] = {}
    around = graph
    while around is not None:
        for variable in getattr(around, "variables", ()):
            by_handle[id(variable.handle)] = variable
        around = getattr(around, "outer_graph", None)
    found: dict[int, Any] = {}
    for internal, external in externals(graph).items():
        for _ in range(64):
            variable = by_handle.get(id(external))
            if variable is not None:
                found[internal] = variable
                break
            outer = getattr(external, "graph", None) if not _is_eager(external) else None
            further = externals(outer).get(id(external)) if outer is not None else None
            if further is None:
                break
            external = further
    return found


def _is_eager(tensor: Any) -> bool:
    return hasattr(tensor, "_numpy")
