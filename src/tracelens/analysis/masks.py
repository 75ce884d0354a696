"""Who hid a non-finite value: the sweep forward from a value to where it ends."""

from __future__ import annotations

from collections.abc import Iterator

from tracelens.analysis.names import MASKS, PREDICATES, canonical
from tracelens.analysis.source import OpSource
from tracelens.events import Op, OpFlag, Phase

_SWEEP = 2048
"""Ops looked at after the origin: a forward pass seldom has more."""
_NEARBY = 64


def selecting_where(source: OpSource, op: Op) -> Op | None:
    """Return the ``where`` that soon reads an output of the op, ``None`` if there is none."""
    written = {output.value_id for output in op.outputs}
    for other in _after(source, op, _NEARBY):
        if canonical(other.name) == "where" and written & {t.value_id for t in other.inputs}:
            return other
    return None


def find_mask(source: OpSource, origin: Op, *, phase: Phase | None = None) -> Op | None:
    """Return the first op that read the origin's bad output, directly or not, and hid it.

    Args:
        source: the recorded ops.
        origin: the op whose output is bad.
        phase: look only at ops of this phase, if given; the next backward pass ends it.

    Returns:
        The op with a finite output though it read the bad value; for a harmless op that was not
        checked, the last one on the way that can hide (``where``, ``clamp`` …) before an op
        that came out finite. ``None`` if the value was not seen to be hidden.
    """
    # Values that may hold what the origin made, and the last op on the way that can hide it.
    hiders: dict[int, Op | None] = {output.value_id: None for output in origin.outputs}
    unread: dict[int, Op] = {}
    for op in _after(source, origin, _SWEEP):
        if phase is not None and op.phase is not phase:
            if op.phase is Phase.BACKWARD:
                break
            continue
        read = [tensor.value_id for tensor in op.inputs if tensor.value_id in hiders]
        name = canonical(op.name)
        if not read or name in PREDICATES or op.flags & OpFlag.VIEW:
            continue
        hider = next((hiders[value] for value in read if hiders[value] is not None), None)
        for value in read:
            unread.pop(value, None)
        if op.flags & OpFlag.HIT:
            hider = None
        elif op.flags & OpFlag.CHECKED:
            return hider or op
        elif not op.flags & OpFlag.HARMLESS:
            continue
        elif name in MASKS:
            hider = op
        for output in op.outputs:
            hiders[output.value_id] = hider
            if hider is not None:
                unread[output.value_id] = hider
    return next(iter(unread.values()), None)


def _after(source: OpSource, op: Op, limit: int) -> Iterator[Op]:
    """Yield the ops recorded after one in its step, in order, at most ``limit`` ids further."""
    for op_id in range(op.op_id + 1, op.op_id + 1 + limit):
        other = source.op(op_id)
        if other is not None and other.step > op.step:
            return
        if other is not None:
            yield other
