"""What the analysis needs to know of a recording: ops by id, and which of them were hit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol, runtime_checkable

from tracelens.events import MAX_SLOT, SLOT_BITS, Op, TensorRecord


@runtime_checkable
class OpSource(Protocol):
    """Anything that can look up recorded ops: the live ring, a recovered ring, a trace."""

    def op(self, op_id: int) -> Op | None:
        """Return the op, or ``None`` if it is no longer (or never was) recorded."""

    def hits(self, step: int | None = None) -> Iterable[int]:
        """Return the ids of ops with a non-finite output, in order; of all steps if ``None``."""


def producer_id(value_id: int) -> int:
    """Return the id of the op that wrote a value, -1 if no recorded op did.

    >>> producer_id(7 * 16 + 2), producer_id(-1)
    (7, -1)
    """
    return value_id >> SLOT_BITS if value_id >= 0 else -1


def with_measured_inputs(source: OpSource, op: Op) -> Op:
    """Return an op whose inputs have the statistics their producers were recorded with.

    An engine that measures every output need not measure inputs as well.

    Args:
        source: where the producers are looked up.
        op: an op of it.
    """
    return replace(op, inputs=tuple(_measured(source, tensor) for tensor in op.inputs))


def _measured(source: OpSource, tensor: TensorRecord) -> TensorRecord:
    slot = tensor.value_id & MAX_SLOT
    if tensor.stats is not None or tensor.value_id < 0 or slot == MAX_SLOT:
        return tensor
    producer = source.op(producer_id(tensor.value_id))
    if producer is None or slot >= len(producer.outputs):
        return tensor
    made = producer.outputs[slot]
    # A view shows the value under a shape of its own; a graph may leave sizes (-1) to the run.
    return replace(
        tensor,
        stats=made.stats,
        dtype=tensor.dtype or made.dtype,
        shape=made.shape if tensor.shape is None or -1 in tensor.shape else tensor.shape,
        first_bad=tensor.first_bad or made.first_bad,
    )
