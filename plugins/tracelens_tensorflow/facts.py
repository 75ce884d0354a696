"""What each op of a graph is: the user's line, the layer, the phase, the forward op."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.events import OpFlag, Phase, Source
from tracelens.userframes import source_keys
from tracelens_tensorflow import fdef, gradlinks, layers, optables, sources, spans
from tracelens_tensorflow.spans import OpRef

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens.storage.writer import ShardWriter

_DEPTH = 8
"""Gradients of gradients are followed this far to the line of the op they began with."""

_FAR = 64
"""Ops between a gradient and the write of an update: a rule by hand has a dozen."""

_BACKWARD_NAMES = ("gradient_tape/", "gradients/")
_CALLERS = optables.CALLS | optables.BRANCHES | optables.LOOPS
_PLUMBING = frozenset(("Placeholder", "NoOp"))


@dataclass(frozen=True, slots=True)
class OpFacts:
    """What an op of a graph is.

    Attributes:
        op_type: ``"MatMul"``.
        name: its name in its graph.
        source: the user's line that issued it; a backward op has its forward op's line, unless
            it was made in a gradient function of the user.
        exact: False if the line is only the nearest one known.
        module: path of the Keras layer, empty outside of layers.
        phase: part of the step.
        forward: of a backward op, its forward op, perhaps in another graph.
    """

    op_type: str
    name: str
    source: Source | None
    exact: bool
    module: str
    phase: Phase
    forward: tf.Operation | None

    @property
    def flags(self) -> OpFlag:
        """What an op's record says of its line."""
        near = self.source is not None and not self.exact
        return OpFlag.INEXACT_SOURCE if near else OpFlag(0)


@dataclass(frozen=True, slots=True)
class _Known:
    """The part of the facts that may outlive the graph."""

    source: Source | None
    exact: bool
    module: str
    phase: Phase
    forward: OpRef | None


_facts: weakref.WeakKeyDictionary[Any, dict[int, _Known]] = weakref.WeakKeyDictionary()
_sites: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], int]] = weakref.WeakKeyDictionary()
_NOTHING = _Known(None, False, "", Phase.OTHER, None)


def facts_of(op: tf.Operation) -> OpFacts:
    """Return what an op is. Never raises: what cannot be found is absent.

    Args:
        op: an op of any graph.
    """
    known = _known(op, _DEPTH)
    forward = known.forward() if known.forward is not None else None
    op_type, name = getattr(op, "type", ""), getattr(op, "name", "")
    return OpFacts(op_type, name, known.source, known.exact, known.module, known.phase, forward)


def site_of(op: tf.Operation, writer: ShardWriter) -> int:
    """Return the id of an op's ``site`` in a shard, interned at the first question.

    Args:
        op: an op of any graph.
        writer: the session's writer.
    """
    known = _known(op, _DEPTH)
    key = (op.type, known.module, known.exact, known.source)
    sites = _sites.get(writer)
    if sites is None:
        sites = _sites[writer] = {}
    number = sites.get(key)
    if number is None:
        site: dict[str, Any] = {"op": op.type}
        if known.module:
            site["module"] = known.module
        if known.source is not None:
            site.update(source_keys(known.source))
        if not known.exact:
            site["exact"] = False
        number = sites[key] = int(writer.intern("site", site))
    return number


def install(session: Session | None) -> Callable[[], None]:
    """Begin to note what cannot be found out after a graph was traced.

    Args:
        session: the recording, told if a hook cannot be set; ``None`` raises instead.

    Returns:
        A function that takes every hook off again.
    """
    undo: list[Callable[[], None]] = []
    for piece in (spans, layers, gradlinks):
        try:
            undo.append(piece.install())
        except Exception as error:
            if session is None:
                raise
            session.note("hook_failed", f"{piece.__name__}: {error!r}", "warning")

    absent = gradlinks.missing()
    if absent and session is not None:
        session.note(
            "hook_failed",
            f"some backward ops are tied to forward ops by their names: this TensorFlow has no "
            f"{', '.join(absent)}",
            "warning",
        )

    def uninstall() -> None:
        while undo:
            undo.pop()()

    return uninstall


def _known(op: Any, depth: int) -> _Known:
    try:
        graph = op.graph
        of_graph = _facts.get(graph)
        if of_graph is None:
            of_graph = _facts[graph] = {}
        known = of_graph.get(op._id)
        if known is None:
            known = of_graph[op._id] = _examine(op, depth)
        return known
    except Exception:
        return _NOTHING


def _examine(op: Any, depth: int) -> _Known:
    place = sources.place_of(op)
    forward = gradlinks.forward_of(op)
    phase = _phase_of(op, place, forward)
    source, exact = place.source, place.exact and place.source is not None
    module = _module_of(op)
    if source is None and op.traceback:
        source = _line_of_graph(op.graph)
        exact = source is not None
    elif source is None and depth:
        caller = _caller_of(op.graph)
        if caller is not None:
            nearest = _known(caller, depth - 1)
            source, module = nearest.source, module or nearest.module
    if phase is Phase.FORWARD and optables.writes(op) and _reads_gradients(op, depth):
        phase = Phase.OPTIMIZER
    if phase is not Phase.BACKWARD:
        return _Known(source, exact, module, phase, None)
    between = forward is None
    if between:
        forward = gradlinks.forward_of_neighbours(op, _is_backward)
    if forward is None or forward is op:
        return _Known(source, exact and place.own, module, phase, None)
    of_forward = _known(forward, depth - 1) if depth else _NOTHING
    if not place.own and of_forward.source is not None:
        source, exact = of_forward.source, of_forward.exact and not between
    elif not place.own:
        exact = False
    return _Known(source, exact, module or of_forward.module, phase, weakref.ref(forward))


def _line_of_graph(graph: Any) -> Source | None:
    """Return the line that a graph was made from.

    A replica is traced on a thread of its own, whose frames do not reach the program's call.
    """
    while graph is not None:
        notes = spans.known_notes(graph)
        found = None if notes is None or notes.made_at is None else sources.line_in(notes.made_at)
        if found is not None:
            return found
        graph = getattr(graph, "outer_graph", None)
    return None


def _caller_of(graph: Any) -> Any:
    """Return an op that calls a graph, ``None`` if none is known."""
    notes = spans.known_notes(graph)
    around = None if notes is None or notes.caller is None else notes.caller[0]()
    if notes is None or notes.caller is None or around is None:
        return None
    name = notes.caller[1]
    calls = (op for op in around.get_operations() if op.type in _CALLERS)
    return next((op for op in calls if any(name in v for v in fdef.called_by(op).values())), None)


def _reads_gradients(op: Any, depth: int) -> bool:
    """Tell whether a value that an op writes was computed from gradients: an update by hand."""
    waiting, seen = [tensor.op for tensor in list(op.inputs)[1:]], set()
    while waiting and depth and len(seen) < _FAR:
        producer = waiting.pop()
        if producer._id in seen:
            continue
        seen.add(producer._id)
        if _known(producer, depth - 1).phase is Phase.BACKWARD:
            return True
        waiting += [tensor.op for tensor in producer.inputs]
    return False


def _is_backward(op: Any) -> bool:
    return _phase_of(op, sources.place_of(op), gradlinks.forward_of(op)) is Phase.BACKWARD


def _phase_of(op: Any, place: sources.Place, forward: Any) -> Phase:
    if place.phase is not None:
        return place.phase
    return Phase.BACKWARD if forward is not None else _phase_by_name(op)


def _phase_by_name(op: Any) -> Phase:
    if op.type in _PLUMBING:
        return Phase.OTHER
    name = f"{op.name}/"
    if any(name.startswith(part) or f"/{part}" in name for part in _BACKWARD_NAMES):
        return Phase.BACKWARD
    made_for_gradients = str(getattr(op.graph, "name", "")).startswith("__backward_")
    return Phase.BACKWARD if made_for_gradients else Phase.FORWARD


def _module_of(op: Any) -> str:
    notes = spans.known_notes(op.graph)
    if notes is None:
        return ""
    span = notes.span("layers", op._id)
    if span is not None:
        return str(span.owner)
    inside = [scope for scope in notes.scopes if op.name.startswith(scope)]
    return max(inside, key=len).rstrip("/") if inside else notes.path
