"""Ask the flight recorder whether a step made a NaN out of finite values.

Plugins ask it about overflows of a scaled loss, which are normal, to tell them from failures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelens.events import OpFlag, RecordKind

if TYPE_CHECKING:
    from tracelens.session import Session

_ACCUMULATING = ("mm", "mat_mul", "conv", "sum", "mean", "dot", "einsum", "linear", "norm")
"""Ops whose partial sums may overflow to both infinities, which makes a NaN by overflow alone."""


def nan_born(session: Session, step: int) -> str:
    """Return the op that made a NaN in this step from finite inputs, "" if none did.

    An overflow makes an Inf first; a NaN straight from finite values (0/0, log of a negative
    number, a missing value) has nothing to do with the loss scale.

    Args:
        session: the recording.
        step: the step to look at.
    """
    from tracelens.analysis.live import RingOps
    from tracelens.analysis.names import canonical

    records = session.writer.committed()
    mine = records[records["step"] == step]
    suspects = mine[
        (mine["kind"] == RecordKind.OP)
        & ((mine["flags"] & OpFlag.HIT) != 0)
        & ((mine["flags"] & (OpFlag.GARBAGE | OpFlag.CONSTANT)) == 0)
        & (mine["nan"] > 0)
    ]
    if not len(suspects):
        return ""
    source = RingOps(mine, session.writer.strings)
    for op_id in suspects["op_id"]:
        op = source.op(int(op_id))
        if op is None or any(part in canonical(op.name) for part in _ACCUMULATING):
            continue
        known = [tensor.stats for tensor in op.inputs if tensor.stats is not None]
        if known and all(stats.nonfinite == 0 for stats in known):
            return op.name
    return ""
