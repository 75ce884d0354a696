"""The columns of the op table."""

from __future__ import annotations

from tracelens.events import Op, Phase
from tracelens_tui import health
from tracelens_tui.texts import PHASE_WORDS, duration, place, safe, shapes
from tracelens_tui.widgets.virtual_table import Column

_PHASE_TONES = {Phase.BACKWARD: "accent", Phase.OPTIMIZER: "good", Phase.DATA: "warning"}


def op_columns() -> tuple[Column, ...]:
    """Return the columns, the most telling first; narrow terminals leave out the last ranks."""
    return (
        Column("", 1, lambda op: health.of_op(op).glyph, lambda op: health.of_op(op).tone),
        Column("op", 20, _name, lambda op: _name_tone(op), share=2),
        Column("phase", 5, lambda op: PHASE_WORDS[op.phase],
               lambda op: _PHASE_TONES.get(op.phase, "")),
        Column("module", 12, lambda op: safe(op.module), share=3, rank=2, keep_end=True),
        Column("source", 12, place, share=1, rank=1, keep_end=True),
        Column("shapes", 12, shapes, share=3, rank=3),
        Column("time", 7, lambda op: duration(op.duration_ns), right=True, rank=1),
        Column("step", 5, lambda op: str(op.step), right=True, rank=5),
        Column("id", 8, lambda op: str(op.op_id), lambda op: "muted", right=True, rank=4),
    )  # fmt: skip


def _name(op: Op) -> str:
    return f"  {safe(op.name)}" if op.parent_id >= 0 else safe(op.name)


def _name_tone(op: Op) -> str:
    return "error" if health.of_op(op).tone == "error" else ""
