"""What is known of a value: surely non-finite, possibly, or finite.

A checked op tells directly. A harmless op that was not checked (guard level skips those) passes
on what its inputs hold, so its state follows from theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from tracelens.analysis.dtypes import is_float
from tracelens.analysis.names import (
    FINITE_FILLS,
    NAN_OF_INF,
    PREDICATES,
    WHOLE_FILLS,
    canonical,
    holds_indices,
)
from tracelens.analysis.source import OpSource, producer_id
from tracelens.events import MAX_SLOT, Op, OpFlag, Stats, TensorRecord

_MAX_DEPTH = 100


class Bad(IntFlag):
    """Kinds of non-finite values."""

    NONE = 0
    NAN = 1
    INF = 2
    ANY = 3


@dataclass(frozen=True, slots=True)
class State:
    """What a value holds.

    Attributes:
        sure: kinds that were counted in it.
        maybe: further kinds it may hold; nothing in either means it is finite.
    """

    sure: Bad = Bad.NONE
    maybe: Bad = Bad.NONE

    @property
    def possible(self) -> Bad:
        """Every kind it does or may hold."""
        return self.sure | self.maybe

    @property
    def exact(self) -> bool:
        """Nothing about it is a guess."""
        return self.maybe == Bad.NONE


FINITE = State()
UNKNOWN = State(maybe=Bad.ANY)


def state_of_stats(stats: Stats) -> State:
    """Return the state that counts tell; a sample that met nothing bad proves nothing."""
    sure = Bad.NONE
    if stats.nan:
        sure |= Bad.NAN
    if stats.posinf or stats.neginf:
        sure |= Bad.INF
    return State(sure, Bad.ANY & ~sure if stats.sampled else Bad.NONE)


def passes_through(op: Op) -> bool:
    """Tell whether an op's output is bad only if an input was, or if it writes a constant."""
    fills = bool(op.flags & OpFlag.CONSTANT) and not op.flags & OpFlag.CHECKED
    return fills or bool(op.flags & OpFlag.HARMLESS)


def output_of(op: Op, value_id: int) -> TensorRecord | None:
    """Return the op's output with that value id; ``None`` for one past the last own slot."""
    slot = value_id & MAX_SLOT
    if slot == MAX_SLOT:
        return None
    for output in op.outputs:
        if output.value_id == value_id:
            return output
    return op.outputs[slot] if slot < len(op.outputs) else None


class Values:
    """States of values, remembered.

    Args:
        source: where the ops are looked up.
    """

    def __init__(self, source: OpSource) -> None:
        self._source = source
        self._known: dict[int, State] = {}

    def of_input(self, tensor: TensorRecord) -> State:
        """Return the state of an op's input: measured there, or else what its producer tells."""
        if tensor.dtype and not is_float(tensor.dtype):
            return FINITE
        if tensor.shape is not None and 0 in tensor.shape:
            return FINITE  # nothing is in it
        if tensor.stats is not None and not tensor.overwritten:
            return state_of_stats(tensor.stats)
        return self.of_value(tensor.value_id)

    def of_value(self, value_id: int, depth: int = 0) -> State:
        """Return the state of a value by its producer."""
        if value_id < 0 or depth > _MAX_DEPTH:
            return UNKNOWN
        known = self._known.get(value_id)
        if known is None:
            # Set before the inputs are asked, so that a corrupt cyclic trace ends the recursion.
            self._known[value_id] = UNKNOWN
            known = self._known[value_id] = self._compute(value_id, depth)
        return known

    def of_output(self, op: Op, value_id: int) -> State | None:
        """Return what the op's own record tells of one output, ``None`` if nothing."""
        output = output_of(op, value_id)
        if output is not None and output.dtype and not is_float(output.dtype):
            return FINITE
        if output is not None and output.stats is not None:
            return state_of_stats(output.stats)
        if op.flags & OpFlag.HIT:
            measured = [o for o in op.outputs if o.stats is not None]
            if len(measured) == len(op.outputs) and output is None and measured:
                found = Bad.NONE
                for each in measured[MAX_SLOT:] or measured:
                    assert each.stats is not None
                    found |= state_of_stats(each.stats).sure
                return State(Bad.NONE, found)
            return UNKNOWN
        if op.flags & OpFlag.CHECKED:
            return FINITE
        return None

    def _compute(self, value_id: int, depth: int) -> State:
        op = self._source.op(producer_id(value_id))
        if op is None or op.flags & OpFlag.GARBAGE:
            return UNKNOWN
        told = self.of_output(op, value_id)
        if told is not None:
            return told
        if not passes_through(op):
            return UNKNOWN
        name = canonical(op.name)
        if name in FINITE_FILLS or name in PREDICATES:
            return FINITE
        found = Bad.ANY if op.flags & OpFlag.UNSEEN_INPUTS else Bad.NONE
        if op.flags & OpFlag.CONSTANT:
            found |= Bad.INF
        for position, tensor in enumerate(op.inputs):
            if name in WHOLE_FILLS and position == 0:
                continue
            if holds_indices(name, position, len(op.inputs)):
                continue
            if tensor.stats is not None and not tensor.overwritten:
                found |= state_of_stats(tensor.stats).possible
            elif not tensor.dtype or is_float(tensor.dtype):
                found |= self.of_value(tensor.value_id, depth + 1).possible
        if found & Bad.INF and name in NAN_OF_INF:
            found |= Bad.NAN
        return State(Bad.NONE, found)
