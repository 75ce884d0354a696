"""Who hid a non-finite value: the walk forward from a value to where it ends."""

from __future__ import annotations

from collections import deque

from tracelens.analysis.names import MASKS, PREDICATES, canonical
from tracelens.analysis.source import ConsumerSource, OpSource
from tracelens.events import SLOT_BITS, Op, OpFlag, Phase

_MAX_OPS = 512


def selecting_where(source: OpSource, op: Op) -> Op | None:
    """Return the ``where`` that reads the op's first output, ``None`` if there is none."""
    if not isinstance(source, ConsumerSource):
        return None
    for reader in source.consumers(op.op_id << SLOT_BITS):
        other = source.op(reader)
        if other is not None and canonical(other.name) in ("where", "select_v2"):
            return other
    return None


def find_mask(source: OpSource, origin: Op, *, phase: Phase | None = None) -> Op | None:
    """Return the first op that read the origin's bad output, directly or not, and hid it.

    Args:
        source: the recorded ops; one without ``consumers`` gives no answer.
        origin: the op whose output is bad.
        phase: look only at ops of this phase, if given.

    Returns:
        The op with a finite output though it read the bad value; for a harmless op that was not
        checked, the last one on the way that can hide (``where``, ``clamp`` …) before an op
        that came out finite. ``None`` if the value was not seen to be hidden.
    """
    if not isinstance(source, ConsumerSource):
        return None
    waiting: deque[tuple[int, Op | None]] = deque()
    seen = {origin.op_id}

    def spread(op: Op, hider: Op | None) -> bool:
        any_reader = False
        for value_id in sorted({output.value_id for output in op.outputs}):
            for reader in source.consumers(value_id):
                any_reader = True
                if reader not in seen:
                    seen.add(reader)
                    waiting.append((reader, hider))
        return any_reader

    spread(origin, None)
    fallback: Op | None = None
    while waiting and len(seen) < _MAX_OPS:
        op_id, hider = waiting.popleft()
        op = source.op(op_id)
        if op is None or (phase is not None and op.phase is not phase):
            continue
        name = canonical(op.name)
        if name in PREDICATES or op.flags & OpFlag.VIEW:
            continue
        if op.flags & OpFlag.HIT:
            spread(op, None)
            continue
        if op.flags & OpFlag.CHECKED:
            return hider or op
        if not op.flags & OpFlag.HARMLESS:
            continue
        now = op if name in MASKS else hider
        if not spread(op, now) and now is not None and fallback is None:
            fallback = now
    return fallback
