"""Texts to copy: an op, and the Python that gets at it again."""

from __future__ import annotations

from pathlib import Path

from tracelens.events import Op
from tracelens_tui import health
from tracelens_tui.texts import place, safe, tensor_kind, values


def of_op(path: Path, op: Op) -> str:
    """Return a few lines that describe an op and how to load it.

    Args:
        path: its trace.
        op: the op.
    """
    lines = [
        f"{safe(op.name)} #{op.op_id}  step {op.step}  {op.phase.label}"
        + (f"  in {safe(op.module)}" if op.module else "")
        + (f"  at {place(op)}" if op.source else "")
    ]
    for label, tensors in (("in", op.inputs), ("out", op.outputs)):
        for slot, tensor in enumerate(tensors):
            state = health.of_tensor(tensor)
            told = f"{label} {slot}  {state.glyph} {tensor_kind(tensor)}  {values(tensor.stats)}"
            lines.append("  " + told.rstrip())
    lines.append(f"tracelens.load({str(path)!r}).ops.by_id({op.op_id})")
    return "\n".join(lines)
