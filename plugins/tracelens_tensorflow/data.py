"""Batches of `tf.data`: which one of its iterator a bad value came in with.

An iterator's batches are counted where the program takes them: in eager code, and in traced
functions by what their twins hand out. Nothing is written until something is found: then the
batches of the call are told as ``data`` events.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.data.ops import iterator_ops

from tracelens.events import SLOT_BITS
from tracelens_tensorflow import tensors

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.calls import Call
    from tracelens_tensorflow.recording import Recorder

KEPT_BATCHES = 256
"""Eager batches whose place in their iterator is remembered."""

LOADER = "tf.data"

_ITERATORS = frozenset("IteratorGetNext IteratorGetNextSync IteratorGetNextAsOptional".split())


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that the program took.

    Attributes:
        index: its place among those of its iterator, from 0.
        size: how many samples it holds, 0 if unknown.
    """

    index: int
    size: int


class DataWatch:
    """Counts the batches of one session.

    Args:
        session: the recording.
        recorder: knows which op a tensor's value is from.
    """

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        self._taken: dict[int, int] = {}
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._told: set[int] = set()

    def install(self) -> Callable[[], None]:
        """Begin to count what eager code takes; the result, called, ends it."""
        original = iterator_ops.OwnedIterator._next_internal

        def _next_internal(iterator: Any) -> Any:
            batch = original(iterator)
            if tf.executing_eagerly():
                flat = tf.nest.flatten(batch, expand_composites=True)
                self._count(iterator._iterator_resource, flat)
            return batch

        iterator_ops.OwnedIterator._next_internal = _next_internal

        def uninstall() -> None:
            if iterator_ops.OwnedIterator._next_internal is _next_internal:
                iterator_ops.OwnedIterator._next_internal = original

        return uninstall

    def called(self, call: Call) -> None:
        """A traced function ran: count what it took."""
        for op, runs in call.kept.items():
            if op.type in _ITERATORS:
                handle = self._handle(call, op)
                for outputs in runs:
                    self._count(handle, outputs)

    def tell(self, call: Call) -> None:
        """Write the ``data`` events of a call's batches, which its replay has given ops."""
        taken = [
            tensor
            for op, runs in call.kept.items()
            if op.type in _ITERATORS
            for outputs in runs
            for tensor in outputs
        ]
        for tensor in (*taken, *call.args):
            batch = self._batches.get(tensor._id)
            value_id = self._recorder.value_id(tensor) if batch is not None else -1
            op_id = value_id >> SLOT_BITS
            if batch is not None and value_id >= 0 and op_id not in self._told:
                self._told.add(op_id)
                self._session.event(
                    "data",
                    step=call.step,
                    op_id=op_id,
                    loader=LOADER,
                    batch_index=batch.index,
                    batch_size=batch.size,
                    sample_indices=None,
                )

    def _count(self, handle: Any, outputs: Iterable[Any]) -> None:
        outputs = [tensor for tensor in outputs if hasattr(tensor, "_id")]
        key = getattr(handle, "_id", -1)
        index = self._taken.get(key, 0)
        self._taken[key] = index + 1
        sizes = [tensor.shape[0] for tensor in outputs if tensor.shape.rank]
        batch = Batch(index, int(sizes[0]) if sizes else 0)
        for tensor in outputs:
            if tensors.is_float(tensor) or tensor.dtype == tf.variant:
                self._batches[tensor._id] = batch
        while len(self._batches) > KEPT_BATCHES:
            self._batches.popitem(last=False)

    def _handle(self, call: Call, op: tf.Operation) -> Any:
        """Return the iterator that an op of a function reads, None if it cannot be told."""
        place = next((i for i, t in enumerate(call.graph.inputs) if t is op.inputs[0]), None)
        return call.args[place] if place is not None and place < len(call.args) else None
