"""Where the current op stands: phase, module, function, the ops around it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import Static

from tracelens.events import Op, OpFlag
from tracelens_tui import health
from tracelens_tui.texts import duration, place, safe

_FLAG_WORDS = (
    (OpFlag.INPLACE, "in place"),
    (OpFlag.VIEW, "view"),
    (OpFlag.COMPOSITE, "calls other ops"),
    (OpFlag.CONSTANT, "constant"),
    (OpFlag.HARMLESS, "cannot make a NaN"),
    (OpFlag.GARBAGE, "uninitialised"),
    (OpFlag.INEXACT_SOURCE, "nearest known line"),
    (OpFlag.COMPILED, "compiled region"),
    (OpFlag.REPLAYED, "replayed"),
    (OpFlag.UNSEEN_INPUTS, "some inputs unseen"),
)


class WherePane(Static, can_focus=True):
    """The stack of one op, outermost first."""

    DEFAULT_CSS = """
    WherePane { background: $background; padding: 0 1; overflow-y: auto;
        scrollbar-size-vertical: 1; }
    """
    HELP = """Where the current op stands: step and phase, module path, Python function and line,
    the composite ops that called it, for a backward op its forward op."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.border_title = "where"

    def show(self, op: Op | None, around: Sequence[Op] = ()) -> None:
        """Show an op; ``around`` holds its forward op and the ops that called it."""
        if op is None:
            self.update("")
            return
        rows = [("step", f"{op.step}   {op.phase.label}")]
        if op.module:
            rows.append(("module", safe(op.module)))
        if op.source is not None:
            rows.append(("line", f"{place(op)} in {safe(op.source.function)}"))
            if op.source.code:
                rows.append(("", safe(op.source.code)))
        for other in around:
            known = "forward" if other.op_id == op.fwd_op_id else "inside"
            rows.append((known, f"{safe(other.name)} #{other.op_id} {place(other)}"))
        time = duration(op.duration_ns)
        rows.append(("op", f"{safe(op.name)} #{op.op_id}" + (f"   {time}" if time else "")))
        state = health.of_op(op)
        words = ", ".join(word for flag, word in _FLAG_WORDS if op.flags & flag)
        rows.append(("state", f"{state.glyph} {state.word}" + (f"; {words}" if words else "")))
        if op.tid:
            rows.append(("thread", str(op.tid)))
        text = Text(no_wrap=True, overflow="ellipsis")
        for label, value in rows:
            text.append(f"{label:<8}", "dim")
            text.append(value + "\n")
        text.right_crop(1)
        self.update(text)
