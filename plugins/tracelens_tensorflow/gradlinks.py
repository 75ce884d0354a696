"""Which forward op a backward op belongs to.

TensorFlow runs one gradient function for each forward op, wherever the gradient is made: on a tape,
in ``tf.gradients``, in the bodies of loops and branches, in the backward function of a called
function. The few places that call them are wrapped while graphs are traced, and what a call
makes is noted as a span of op numbers. Graphs that were traced before are read by their names.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import backprop, execute, record
from tensorflow.python.framework.ops import EagerTensor
from tensorflow.python.ops import gradients_util

from tracelens_tensorflow import gradnames, spans
from tracelens_tensorflow.spans import OpRef, Running, Single, Span, current


class Gradient(NamedTuple):
    """An eager op's gradient that is being computed.

    Attributes:
        op_type: of the forward op.
        inputs: its inputs; ``None`` where the gradient does not need them.
        outputs: its outputs, likewise.
    """

    op_type: str
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def current_gradient() -> Gradient | None:
    """Return the eager op whose gradient this thread is computing, ``None`` if it is at none."""
    return current.gradients[-1] if current.gradients else None


def forward_of(op: Any) -> tf.Operation | None:
    """Return the forward op of a backward op, ``None`` if it is unknown.

    Args:
        op: a ``tf.Operation``; the answer may be in another graph.
    """
    found = _noted(op)
    if found is None:
        found = gradnames.forward_named_by(op, _noted)
    return found


def forward_of_neighbours(op: Any, is_backward: Callable[[Any], bool]) -> tf.Operation | None:
    """Return the forward op of what a backward op feeds, or else of what feeds it.

    For the ops between gradient functions: sums of gradients, seeds, zeros.
    """
    consumers = [consumer for output in op.outputs for consumer in output.consumers()]
    for near in (*consumers, *(tensor.op for tensor in op.inputs)):
        found = forward_of(near)
        if found is not None and is_backward(near):
            return found
    return None


def install() -> Callable[[], None]:
    """Begin to note gradients; the result, called, ends it."""
    present = [place for place in _PLACES if hasattr(place[0], place[1])]
    undo = [_watch_tape(), *(_watch(*place) for place in present)]

    def uninstall() -> None:
        while undo:
            undo.pop()()

    return uninstall


def missing() -> list[str]:
    """Return the places that this TensorFlow has not: gradients made there are read by name."""
    places = [(module, name) for module, name, _ in _PLACES]
    places.append((pywrap_tfe, "TFE_Py_RegisterGradientFunction"))
    return [f"{each.__name__}.{name}" for each, name in places if not hasattr(each, name)]


class _Attributes(tuple):  # type: ignore[type-arg]
    """The attributes of a recorded op, which also know the op: the tape hands them back."""

    forward: OpRef


def _record_gradient(
    original: Callable[..., Any], op_name: str, inputs: Any, attrs: Any, outputs: Any
) -> Any:
    """Let what the tape keeps of an op tell which op it was."""
    forward = _symbolic_op(outputs)
    if forward is not None and (attrs is None or type(attrs) is tuple):
        attrs = _Attributes(attrs or ())
        attrs.forward = weakref.ref(forward)
    return original(op_name, inputs, attrs, outputs)


def _record_operation(
    original: Callable[..., Any],
    op_type: str,
    output_tensors: Any,
    input_tensors: Any,
    backward_function: Any,
    *rest: Any,
    **named: Any,
) -> Any:
    """Note what the backward function of a called function or a custom gradient makes."""
    forward = _symbolic_op(output_tensors)
    if forward is not None and callable(backward_function):
        reference, function = weakref.ref(forward), backward_function

        @functools.wraps(function)
        def backward_function(*out_grads: Any) -> Any:
            with _gradient_of(reference, out_grads):
                return function(*out_grads)

    return original(op_type, output_tensors, input_tensors, backward_function, *rest, **named)


def _maybe_compile(
    original: Callable[..., Any], scope: Any, op: Any, func: Any, grad_fn: Any
) -> Any:
    """Note what a gradient function makes outside of tapes."""
    with _gradient_of(weakref.ref(op), ()):
        return original(scope, op, func, grad_fn)


def _aggregated_grads(
    original: Callable[..., Any], grads: Any, op: Any, *rest: Any, **named: Any
) -> Any:
    """Note the sum of the gradients that reach an op."""
    with _gradient_of(weakref.ref(op), ()):
        return original(grads, op, *rest, **named)


_PLACES: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (execute, "record_gradient", _record_gradient),
    (record, "record_operation", _record_operation),
    (gradients_util, "_MaybeCompile", _maybe_compile),
    (gradients_util, "_AggregatedGrads", _aggregated_grads),
)


def _watch(module: Any, name: str, instead: Callable[..., Any]) -> Callable[[], None]:
    original = getattr(module, name)
    wrapper = functools.wraps(original)(functools.partial(instead, original))
    setattr(module, name, wrapper)

    def undo() -> None:
        if getattr(module, name) is wrapper:
            setattr(module, name, original)

    return undo


class _Tape:
    """What tapes call for the gradient of an op; TensorFlow can be told it, but not asked."""

    def __init__(self) -> None:
        self.function: Callable[..., Any] | None = getattr(backprop, "_gradient_function", None)

    def register(self, function: Callable[..., Any]) -> None:
        self.function = function
        pywrap_tfe.TFE_Py_RegisterGradientFunction(function)


_tape = _Tape()


def _watch_tape() -> Callable[[], None]:
    original = _tape.function
    if original is None or not hasattr(pywrap_tfe, "TFE_Py_RegisterGradientFunction"):
        return lambda: None

    def gradient_function(
        op_name: Any, attrs: Any, num_inputs: Any, inputs: Any, outputs: Any, out_grads: Any,
        *rest: Any,
    ) -> Any:  # fmt: skip
        arguments = (op_name, attrs, num_inputs, inputs, outputs, out_grads, *rest)
        if tf.executing_eagerly():
            current.gradients.append(Gradient(op_name, inputs or (), outputs or ()))
            try:
                return original(*arguments)
            finally:
                current.gradients.pop()
        forward = getattr(attrs, "forward", None)
        if forward is None:
            found = _symbolic_op(outputs)
            forward = None if found is None else weakref.ref(found)
        with _gradient_of(forward, out_grads):
            return original(*arguments)

    _tape.register(gradient_function)

    def undo() -> None:
        if _tape.function is gradient_function:
            _tape.register(original)

    return undo


@contextmanager
def _gradient_of(forward: OpRef | None, out_grads: Sequence[Any]) -> Iterator[None]:
    """Note what is made meanwhile as part of the gradient of an op."""
    graph = spans.open_graph() if forward is not None else None
    if graph is None or forward is None:
        yield
        return
    start = spans.next_number(graph)
    running = current.forward
    _note_seeds(graph, forward, out_grads)
    running.append(Running(forward, graph, start))
    try:
        yield
    finally:
        running.pop()
        end = spans.next_number(graph)
        if end > start:
            spans.notes_of(graph).gradients.append(Span(start, end, forward, len(running)))


def _note_seeds(graph: Any, forward: OpRef, out_grads: Sequence[Any]) -> None:
    """Note the ops between gradient functions that made what this one is given.

    Only those made since the enclosing gradient function began: what that was given belongs to
    others.
    """
    around = current.forward[-1] if current.forward else None
    first = around.start if around is not None and around.graph is graph else 0
    depth = len(current.forward)
    for grad in out_grads:
        op = getattr(getattr(grad, "values", grad), "op", None) if grad is not None else None
        if op is not None and op.graph is graph and op._id >= first:
            spans.notes_of(graph).singles.setdefault(op._id, Single(forward, depth))


def _symbolic_op(tensors: Any) -> Any:
    """Return the op that made the first tensor of a graph among some tensors."""
    if isinstance(tensors, (list, tuple)):
        for tensor in tensors:
            if tensor is not None:
                return None if isinstance(tensor, EagerTensor) else getattr(tensor, "op", None)
    return None


def _noted(op: Any) -> Any:
    notes = spans.known_notes(op.graph)
    if notes is None:
        return None
    number = op._id
    span, single = notes.span("gradients", number), notes.singles.get(number)
    if single is not None and (span is None or single.depth > span.depth):
        return single.forward()
    if span is not None:
        return span.owner()
    return notes.forward() if notes.forward is not None else None
