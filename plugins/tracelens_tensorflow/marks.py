"""Losses and gradients as the program names them: what it asks a tape to differentiate.

Asking happens while a function is traced, so the tensors are remembered with their graph; in
eager mode they are handed on at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import backprop

from tracelens_tensorflow.variables import name_of

_MARKS = "_tracelens_marks"

Sink = tuple[Any, str, str]
"""A tensor, the kind of sink it is, and its name."""


def marks_of(graph: Any) -> dict[int, Sink]:
    """Return the losses and gradients of a graph, by ``id`` of the tensor."""
    return dict(getattr(graph, _MARKS, {}))


def mark(tensor: Any, sink: str, name: str) -> None:
    """Remember that a tensor of a graph is a sink; the first that says so is believed."""
    graph = tensor.graph
    marks = getattr(graph, _MARKS, None)
    if marks is None:
        marks = {}
        setattr(graph, _MARKS, marks)
    marks.setdefault(id(tensor), (tensor, sink, name))


def install(
    on_eager: Callable[[list[Sink]], None], failed: Callable[[Exception], None]
) -> Callable[[], None]:
    """Begin to take note of what tapes are asked for.

    Args:
        on_eager: told of the loss and gradients of an eager tape.
        failed: told when taking note failed; the program goes on.

    Returns:
        A function that takes the hook off.
    """
    original = backprop.GradientTape.gradient

    def gradient(tape: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(tape, target, sources, *args, **kwargs)
        try:
            sinks = _sinks(target, sources, result)
            eager = [sink for sink in sinks if _is_eager(sink[0])]
            for tensor, sink, name in sinks:
                if not _is_eager(tensor):
                    mark(tensor, sink, name)
            if eager:
                on_eager(eager)
        except Exception as error:
            if isinstance(error, FloatingPointError):
                raise
            failed(error)
        return result

    gradient.__doc__ = original.__doc__
    gradient.__wrapped__ = original  # type: ignore[attr-defined]
    backprop.GradientTape.gradient = gradient

    def uninstall() -> None:
        if backprop.GradientTape.gradient is gradient:
            backprop.GradientTape.gradient = original

    return uninstall


def _sinks(target: Any, sources: Any, result: Any) -> list[Sink]:
    losses = [_dense(tensor) for tensor in tf.nest.flatten(target)]
    sinks: list[Sink] = [(tensor, "loss", "loss") for tensor in losses if _is_float(tensor)]
    watched = tf.nest.flatten(sources)
    gradients = _flat(result)
    for place, (source, gradient) in enumerate(zip(watched, gradients, strict=False)):
        tensor = _dense(gradient)
        if _is_float(tensor):
            sinks.append((tensor, "gradient", _source_name(source, place)))
    return sinks


def _flat(structure: Any) -> list[Any]:
    """Flatten, keeping ``None`` and indexed slices as single entries."""
    if isinstance(structure, list | tuple) and not isinstance(structure, tf.IndexedSlices):
        return [leaf for part in structure for leaf in _flat(part)]
    if isinstance(structure, dict):
        return [leaf for key in sorted(structure) for leaf in _flat(structure[key])]
    return [structure]


def _dense(tensor: Any) -> Any:
    return tensor.values if isinstance(tensor, tf.IndexedSlices) else tensor


def _is_float(tensor: Any) -> bool:
    return isinstance(tensor, tf.Tensor) and bool(tensor.dtype.is_floating)


def _is_eager(tensor: Any) -> bool:
    return hasattr(tensor, "_numpy")


def _source_name(source: Any, place: int) -> str:
    path = getattr(source, "path", "")
    if path:
        return str(path)
    if isinstance(source, tf.Variable):
        return name_of(source)
    return f"source {place}"
