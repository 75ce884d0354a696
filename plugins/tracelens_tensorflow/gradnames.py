"""Reads forward ops from the names of backward ops, for graphs that nobody watched being made.

``tf.gradients`` names them ``gradients/<forward op>_grad/...``, a tape
``gradient_tape/<scope of the forward op>/...``, a vectorized map ``<op>/pfor/...``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_VECTORIZED_NAME = re.compile(r"(.+?)/pfor(?:_\d+)?/")
_TAPE_NAME = re.compile(r"(?:^|/)gradient_tape/(.+)")
_GRADIENTS_NAME = re.compile(r"(?:^|/)gradients(?:_\d+)?/(.+?)_grad(?:_\d+)?/")


def forward_named_by(op: Any, noted: Callable[[Any], Any]) -> tf.Operation | None:
    """Return the forward op that the name of a backward op holds, ``None`` if it holds none.

    Args:
        op: a ``tf.Operation``.
        noted: returns the forward op of one that was watched while it was made: an op that was
            vectorized is named after the one it was made from.
    """
    name = op.name
    vectorized = _VECTORIZED_NAME.match(name)
    if vectorized is not None:
        original = _named(op.graph, vectorized.group(1))
        return None if original is None else noted(original)
    made = _GRADIENTS_NAME.search(name)
    if made is not None:
        return _named(op.graph, made.group(1))
    taped = _TAPE_NAME.search(name)
    scope = taped.group(1).rpartition("/")[0] if taped is not None else ""
    while scope:
        found = _named(op.graph, scope)
        if found is not None:
            return found
        scope = scope.rpartition("/")[0]
    return None


def _named(graph: Any, name: str) -> Any:
    """Return the op of a name in the graph, the graph it is the gradient of, or one around it."""
    while graph is not None:
        for place in (graph, getattr(graph, "_forward_graph", None)):
            if place is not None:
                try:
                    return place.get_operation_by_name(name)
                except (KeyError, ValueError):
                    continue
        graph = getattr(graph, "outer_graph", None)
    return None
