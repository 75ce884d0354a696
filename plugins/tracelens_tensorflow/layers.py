"""Which Keras layer is being called, and which ops of a graph each call made.

Name scopes do not tell: Keras makes them unique, cuts them short, and backward ops have none.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tracelens.discovery import ImportWatcher, is_imported
from tracelens_tensorflow import spans
from tracelens_tensorflow.spans import Span, current

_MODULES = (
    "keras.src.layers.layer",
    "tf_keras.src.engine.base_layer",
    "tensorflow.python.keras.engine.base_layer",
)
"""They define ``Layer``, the base of all layers: Keras 3, Keras 2, the one inside TensorFlow."""

_MARK = "__tracelens__"


on_output: list[Callable[[str, Any], None]] = []
"""Told of each layer's path and what its call returned, symbolic or eager; may not raise."""


def current_path() -> str:
    """Return the path of the layer that this thread is calling (``"encoder/dense_1"``)."""
    return current.path()


def install() -> Callable[[], None]:
    """Begin to note calls of layers; the result, called, ends it."""
    undo: list[Callable[[], None]] = []

    def wrap(module: str) -> None:
        base = getattr(sys.modules.get(module), "Layer", None)
        if base is not None and not hasattr(base.__call__, _MARK):
            undo.append(_wrap(base))

    for module in _MODULES:
        if is_imported(module):
            wrap(module)
    # Keras is seldom imported with TensorFlow: it comes when the program asks for it.
    watcher = ImportWatcher([name for name in _MODULES if name not in sys.modules], wrap)
    watcher.install()
    undo.append(_wrap_scopes())

    def uninstall() -> None:
        watcher.remove()
        while undo:
            undo.pop()()

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
            result = original(self, *args, **kwargs)
            for told in on_output:
                told(path, result)
            return result
        finally:
            stack.pop()
            if graph is not None:
                end = spans.next_number(graph)
                if end > start:
                    spans.notes_of(graph).layers.append(Span(start, end, path))

    setattr(__call__, _MARK, True)
    base.__call__ = __call__

    def unwrap() -> None:
        if base.__call__ is __call__:
            base.__call__ = original

    return unwrap


def _wrap_scopes() -> Callable[[], None]:
    """Note the name scopes that ``tf.Module.with_name_scope`` enters: they name their ops."""
    original = tf.Module.name_scope

    def name_scope(self: Any) -> Any:
        scope = original.fget(self)
        graph = spans.open_graph()
        if graph is not None:
            spans.notes_of(graph).scopes.add(str(scope.name))
        return scope

    wrapped = property(functools.wraps(original.fget)(name_scope))
    tf.Module.name_scope = wrapped

    def unwrap() -> None:
        if tf.Module.name_scope is wrapped:
            tf.Module.name_scope = original

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
