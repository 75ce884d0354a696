"""Remembers what was going on while ops of a graph were made: a layer's call, a gradient.

Ops of a graph are numbered in the order they are made, so two numbers taken around a call tell
which ops it made; nothing is done for each op. A graph made meanwhile (a branch, a loop's body, a
called function) inherits what was going on.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.util import tf_stack

_FIRST_ID = 2
"""Ids 0 and 1 of a graph are its source and sink, which are no operations."""


OpRef: TypeAlias = "weakref.ref[tf.Operation]"
"""An op that must not keep its graph alive. The graph keeps the op alive."""


@dataclass(slots=True)
class Span:
    """Ops ``start <= number < end`` of one graph and what they belong to.

    ``depth`` counts the spans of the same kind that were open around it.
    """

    start: int
    end: int
    owner: Any
    depth: int = 0


class Single(NamedTuple):
    """What one op, made between two gradient functions, belongs to."""

    forward: OpRef
    depth: int


class Running(NamedTuple):
    """A gradient function that is being called, and the first op that it may make."""

    forward: OpRef
    graph: Any
    start: int


@dataclass(slots=True)
class GraphNotes:
    """What is known of one graph.

    Attributes:
        layers: ops made in calls of layers; ``owner`` is the path of the layer.
        gradients: ops made by gradient functions; ``owner`` is the `OpRef` of the forward op.
        path: the layer that was being called when the graph was made.
        forward: the op whose gradient was being made when the graph was made.
        singles: what single ops belong to, by number.
        scopes: name scopes of the ``tf.Module`` objects that were entered in it.
        made_at: TensorFlow's stack trace of where the graph was made.
        caller: a graph that calls this one, and by what name.
    """

    layers: list[Span] = field(default_factory=list)
    gradients: list[Span] = field(default_factory=list)
    path: str = ""
    forward: OpRef | None = None
    singles: dict[int, Single] = field(default_factory=dict)
    scopes: set[str] = field(default_factory=set)
    made_at: Any = None
    caller: tuple[weakref.ref[Any], str] | None = None
    _found: dict[str, tuple[int, dict[int, Span]]] = field(default_factory=dict)

    def span(self, kind: str, number: int) -> Span | None:
        """Return the innermost span that holds an op, ``None`` if none does.

        Args:
            kind: ``"layers"`` or ``"gradients"``.
            number: of the op in its graph.
        """
        known: list[Span] = getattr(self, kind)
        count, found = self._found.get(kind, (-1, {}))
        if count != len(known):
            # A span is noted when it ends, so an inner one stands before the one around it.
            found = {at: span for span in reversed(known) for at in range(span.start, span.end)}
            self._found[kind] = (len(known), found)
        return found.get(number)


class Current(threading.local):
    """What goes on in the calling thread."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.forward: list[Running] = []
        self.gradients: list[Any] = []

    def path(self) -> str:
        """Return the path of the layer that is being called, empty if none is."""
        return self.layers[-1] if self.layers else ""


current = Current()
_notes: weakref.WeakKeyDictionary[Any, GraphNotes] = weakref.WeakKeyDictionary()


def notes_of(graph: Any) -> GraphNotes:
    """Return what is known of a graph, to be read or added to."""
    notes = _notes.get(graph)
    if notes is None:
        notes = _notes[graph] = GraphNotes()
    return notes


def known_notes(graph: Any) -> GraphNotes | None:
    """Return what is known of a graph, ``None`` if nothing is."""
    return _notes.get(graph)


def called_in(graph: Any, caller: Any, name: str) -> Any:
    """Note that one graph calls another; return the one that is called.

    A graph that was rebuilt from a definition knows no lines: those of its caller are the nearest.
    """
    notes = notes_of(graph)
    if notes.caller is None and graph is not caller:
        notes.caller = (weakref.ref(caller), name)
    return graph


def next_number(graph: Any) -> int:
    """Return the number that the next op of a graph will have."""
    return int(graph.num_operations()) + _FIRST_ID


def open_graph() -> Any:
    """Return the graph that ops are added to now, ``None`` if they run eagerly."""
    return None if tf.executing_eagerly() else ops.get_default_graph()


def install() -> Callable[[], None]:
    """Begin to note what goes on when a function graph is made; the result, called, ends it."""
    original = FuncGraph.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        notes = notes_of(self)
        notes.made_at = tf_stack.extract_stack()
        notes.path = current.path()
        notes.forward = current.forward[-1].forward if current.forward else None

    FuncGraph.__init__ = __init__

    def uninstall() -> None:
        if FuncGraph.__init__ is __init__:
            FuncGraph.__init__ = original

    return uninstall
