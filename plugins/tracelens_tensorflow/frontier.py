"""Chooses which tensors of a graph must be looked at so that no non-finite value goes unseen.

A tensor in which a NaN or an Inf can first appear is covered if it is checked, or if an op that
surely hands the value on writes a covered tensor. Walking the ops backwards, the checks end up
on few tensors: the last of each chain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from tracelens_tensorflow import optables
from tracelens_tensorflow.fusion import hidden_by_fusion

if TYPE_CHECKING:
    import tensorflow as tf


class Level(Enum):
    """How much of a graph is checked.

    ``FRONTIER`` sees every non-finite value that an op of the graph makes. ``SINKS`` looks at
    losses, gradients, outputs and what is written into variables. ``LEAST`` leaves the variables
    out: what is wrong with them shows in the next step.
    """

    FRONTIER = "frontier"
    SINKS = "sinks"
    LEAST = "least"


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor to be checked.

    Attributes:
        tensor: of the graph.
        sink: kind of the sink it is; empty for a value on the way.
        name: of the sink.
    """

    tensor: tf.Tensor
    sink: str = ""
    name: str = ""


def checkable(tensor: tf.Tensor) -> bool:
    """Tell whether a tensor can hold a NaN that a check can see."""
    dtype = tensor.dtype
    return bool((dtype.is_floating or dtype.is_complex) and not dtype.is_quantized)


def choose(
    ops: Iterable[tf.Operation],
    sinks: Mapping[int, tuple[tf.Tensor, str, str]],
    level: Level = Level.FRONTIER,
    seen_inside: Collection[str] = (),
) -> list[Place]:
    """Return the tensors of a graph to check.

    Args:
        ops: the live ops of the graph, in an order in which producers come first.
        sinks: by ``id`` of a tensor: itself, the kind and the name of the sink it is.
        level: how much is checked.
        seen_inside: names of ops that call functions which are checked themselves.
    """
    chosen = {
        key: Place(tensor, sink, name)
        for key, (tensor, sink, name) in sinks.items()
        if checkable(tensor) and (sink != "parameter" or level is not Level.LEAST)
    }
    if level is Level.FRONTIER:
        _add_frontier(list(ops), chosen, seen_inside)
    return list(chosen.values())


def _add_frontier(
    ops: list[tf.Operation], chosen: dict[int, Place], seen_inside: Collection[str]
) -> None:
    readers: dict[int, list[tuple[tf.Operation, int]]] = {}
    for op in ops:
        for place, tensor in enumerate(op.inputs):
            readers.setdefault(id(tensor), []).append((op, place))
    needed: set[int] = set()
    fused = hidden_by_fusion(ops)
    # A reader stands after the op it reads from, so its own need is known only once it was met:
    # producers are walked first and hand the need on to the reader that shows their values.
    for op in ops:
        creates = op.name not in seen_inside and optables.can_create(op)
        for tensor in op.outputs:
            key = id(tensor)
            if key in chosen or not (creates or key in needed) or not checkable(tensor):
                continue
            if key in fused:
                # A check would be a second reader, undo the fusion, and change what is computed.
                needed.add(id(fused[key]))
                continue
            shown = _shown_by(readers.get(key, ()), chosen)
            if shown is None:
                chosen[key] = Place(tensor)
            else:
                needed.add(shown)


def _shown_by(readers: Iterable[tuple[tf.Operation, int]], chosen: dict[int, Place]) -> int | None:
    """Return the id of a reader's output that surely shows a tensor's non-finite values."""
    best: int | None = None
    for op, place in readers:
        if op.outputs and optables.propagates(op, place) and checkable(op.outputs[0]):
            key = id(op.outputs[0])
            if key in chosen:
                return key
            # Of several, one that makes values itself has to be covered in any case.
            if best is None or optables.can_create(op):
                best = key
    return best
