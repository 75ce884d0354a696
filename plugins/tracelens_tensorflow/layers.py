"""Which Keras layer is being called, and which ops of a graph each call made.

Name scopes do not tell: Keras makes them unique, cuts them short, and backward ops have none.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any

from tracelens_tensorflow import spans
from tracelens_tensorflow.spans import Span, current

_BASES = (
    ("keras.src.layers.layer", "Layer"),
    ("tf_keras.src.engine.base_layer", "Layer"),
    ("tensorflow.python.keras.engine.base_layer", "Layer"),
)
"""Modules that define the base class of layers: Keras 3, Keras 2, and the one inside TensorFlow."""


def current_path() -> str:
    """Return the path of the layer that this thread is calling (``"encoder/dense_1"``)."""
    return current.path()


def install() -> Callable[[], None]:
    """Begin to note calls of layers; the result, called, ends it.

    Only base classes that are already imported are wrapped: call it again after an import.
    """
    undo: list[Callable[[], None]] = []
    for module, name in _BASES:
        base = getattr(sys.modules.get(module), name, None)
        if base is not None and "__tracelens__" not in vars(base.__call__):
            undo.append(_wrap(base))

    def uninstall() -> None:
        for step in undo:
            step()
        undo.clear()

    return uninstall


def _wrap(base: Any) -> Callable[[], None]:
    original = base.__call__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        stack = current.layers
        try:
            path = _path(stack, self)
            graph = spans.open_graph()
            start = 0 if graph is None else spans.next_number(graph)
        except Exception:  # a layer that has no name must still run
            return original(self, *args, **kwargs)
        stack.append(path)
        try:
            return original(self, *args, **kwargs)
        finally:
            stack.pop()
            if graph is not None:
                end = spans.next_number(graph)
                if end > start:
                    spans.notes_of(graph).layers.append(Span(start, end, path))

    __call__.__tracelens__ = True
    base.__call__ = __call__

    def unwrap() -> None:
        if base.__call__ is __call__:
            base.__call__ = original

    return unwrap


def _path(stack: list[str], layer: Any) -> str:
    """Return a layer's path; a model that nobody named is left out of the paths below it."""
    name = str(layer.name)
    if not stack:
        return name
    above = stack[-1]
    return name if len(stack) == 1 and _is_nameless(above) else f"{above}/{name}"


_AUTOMATIC = re.compile(r"(sequential|functional|model)(_\d+)?")


def _is_nameless(name: str) -> bool:
    return _AUTOMATIC.fullmatch(name) is not None
