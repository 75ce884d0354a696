"""The values of a matrix as numbers; only what is in view is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tracelens_tui.texts import number

_CELL = 11
_HEAD = 9


class ValueGrid(Widget, can_focus=True):
    """Rows and columns of numbers around a cursor."""

    DEFAULT_CSS = """
    ValueGrid { background: $background; height: 1fr; }
    ValueGrid > .values--head { color: $quiet; }
    ValueGrid > .values--bad { color: $text-error; text-style: bold; }
    ValueGrid > .values--cursor { background: $block-cursor-background;
        color: $block-cursor-foreground; text-style: bold; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"values--head", "values--bad", "values--cursor"}
    HELP = """The elements as numbers, the last dimension across. Arrows and pages move; `x` and `X`
    go to the next and previous non-finite element, `+` and `-` to the greatest and least."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1,0)", "up", show=False, id="values.up"),
        Binding("down,j", "move(1,0)", "down", show=False, id="values.down"),
        Binding("left,h", "move(0,-1)", "left", show=False, id="values.left"),
        Binding("right,l", "move(0,1)", "right", show=False, id="values.right"),
        Binding("pageup", "page(-1)", "page up", show=False, id="values.page_up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="values.page_down"),
    ]

    @dataclass
    class Moved(Message):
        """The cursor is at another element."""

        row: int
        column: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._matrix: NDArray[Any] | None = None
        self._at = (0, 0)
        self._top = self._left = 0

    def show(self, matrix: NDArray[Any]) -> None:
        """Show a matrix."""
        self._matrix = matrix
        height, width = matrix.shape
        self.go_to(min(self._at[0], height - 1), min(self._at[1], width - 1))

    def go_to(self, row: int, column: int) -> None:
        """Move the cursor to an element and bring it into view."""
        self._at = (max(row, 0), max(column, 0))
        lines, columns = self._room()
        if not self._top <= row < self._top + lines:
            self._top = max(0, row - lines // 2)
        if not self._left <= column < self._left + columns:
            self._left = max(0, column - columns // 2)
        self.refresh()

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor by elements."""
        if self._matrix is None:
            return
        height, width = self._matrix.shape
        row = max(0, min(self._at[0] + rows, height - 1))
        column = max(0, min(self._at[1] + columns, width - 1))
        self.go_to(row, column)
        self.post_message(self.Moved(row, column))

    def action_page(self, pages: int) -> None:
        """Move the cursor by screens."""
        self.action_move(pages * self._room()[0], 0)

    def _room(self) -> tuple[int, int]:
        return max(1, self.size.height - 1), max(1, (self.size.width - _HEAD) // _CELL)

    def render_line(self, y: int) -> Strip:
        """Draw the column numbers, or one row."""
        base = self.rich_style
        width = self.size.width
        if self._matrix is None or not self._matrix.size:
            text = " no element" if y == 0 and self._matrix is not None else ""
            return Strip([Segment(text, base)]).adjust_cell_length(width, base)
        head = base + self.get_component_rich_style("values--head", partial=True)
        height, columns = self._matrix.shape
        last = min(self._left + self._room()[1], columns)
        if y == 0:
            names = "".join(f"{column:>{_CELL}}" for column in range(self._left, last))
            return Strip([Segment(" " * _HEAD + names, head)]).adjust_cell_length(width, base)
        row = self._top + y - 1
        if row >= height:
            return Strip.blank(width, base)
        segments = [Segment(f"{row:>{_HEAD - 1}} ", head)]
        bad = base + self.get_component_rich_style("values--bad", partial=True)
        cursor = base + self.get_component_rich_style("values--cursor", partial=True)
        for column, value in enumerate(self._matrix[row, self._left : last], self._left):
            text, is_bad = value_text(value)
            style = cursor if self._at == (row, column) else bad if is_bad else base
            segments.append(Segment(f"{text:>{_CELL}}", style))
        return Strip(segments).adjust_cell_length(width, base)


def value_text(value: Any) -> tuple[str, bool]:
    """Return an element as text, and whether it is non-finite.

    >>> value_text(np.float32(0.5)), value_text(np.float32("nan")), value_text(np.int64(7))
    (('0.5', False), ('✖ nan', True), ('7', False))
    """
    if isinstance(value, np.bool_ | np.integer):
        return str(value), False
    if isinstance(value, np.complexfloating):
        return f"{value:.3g}", not np.isfinite(value)
    real = float(value)
    if math.isfinite(real):
        return number(real), False
    return ("✖ nan" if math.isnan(real) else "∞ inf" if real > 0 else "∞ -inf"), True
