"""A matrix as coloured half blocks, two rows a line, with a scale and a cursor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tracelens_tui import colours
from tracelens_tui.pictures import Grid
from tracelens_tui.texts import number

_BAR = 24


class Heatmap(Widget, can_focus=True):
    """Draws a grid; a cell with a NaN shows ``✖``, with an Inf ``∞``, whatever its colour."""

    DEFAULT_CSS = """
    Heatmap { background: $background; height: 1fr; width: 1fr; }
    Heatmap > .heatmap--bad { color: $text-error; text-style: bold; }
    Heatmap > .heatmap--scale { color: $quiet; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"heatmap--bad", "heatmap--scale"}
    HELP = """Each half block is one element, or the mean of several. `✖` marks a cell with a NaN,
    `∞` one with an Inf. Arrows move the cursor; the line above tells the element under it."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1,0)", "up", show=False, id="heatmap.up"),
        Binding("down,j", "move(1,0)", "down", show=False, id="heatmap.down"),
        Binding("left,h", "move(0,-1)", "left", show=False, id="heatmap.left"),
        Binding("right,l", "move(0,1)", "right", show=False, id="heatmap.right"),
    ]

    @dataclass
    class Moved(Message):
        """The cursor is at another element: matrix row and column."""

        row: int
        column: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._grid: Grid | None = None
        self._levels: NDArray[np.int64] = np.zeros((0, 0), dtype=np.int64)
        self._kind = "sequential"
        self._low = self._high = 0.0
        self._at = (0, 0)

    @property
    def room(self) -> tuple[int, int]:
        """Rows and columns of cells that can be drawn."""
        return max(2, 2 * (self.size.height - 1)), max(4, self.size.width)

    def show(self, grid: Grid, low: float | None, high: float | None) -> None:
        """Draw a grid, coloured between two values."""
        self._grid = grid
        self._kind, self._low, self._high = colours.bounds(low or 0.0, high or 0.0)
        self._levels = colours.levels(grid.values, self._low, self._high)
        rows, columns = grid.values.shape
        self._at = (min(self._at[0], rows - 1), min(self._at[1], columns - 1))
        self.refresh()

    def go_to(self, row: int, column: int) -> None:
        """Move the cursor to the cell of an element."""
        if self._grid is not None:
            at = (
                int(np.searchsorted(self._grid.rows, row, side="right")) - 1,
                int(np.searchsorted(self._grid.columns, column, side="right")) - 1,
            )
            self._at = at
            self.refresh()

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor by cells."""
        if self._grid is None:
            return
        height, width = self._grid.values.shape
        row = max(0, min(self._at[0] + rows, height - 1))
        column = max(0, min(self._at[1] + columns, width - 1))
        self._at = (row, column)
        self.refresh()
        self.post_message(self.Moved(int(self._grid.rows[row]), int(self._grid.columns[column])))

    def render_line(self, y: int) -> Strip:
        """Draw two rows of cells, or the scale in the last line."""
        base = self.rich_style
        width = self.size.width
        if self._grid is None:
            return Strip.blank(width, base)
        if y == self.size.height - 1:
            return self._scale_line(width, base)
        top = 2 * y
        height, columns = self._grid.values.shape
        if top >= height:
            return Strip.blank(width, base)
        plain = self.app.no_color
        table = self._colours()
        segments = []
        for column in range(min(columns, width)):
            segments.append(self._cell(top, column, table, base, plain=plain))
        return Strip(Segment.simplify(segments)).adjust_cell_length(width, base)

    def _cell(
        self, top: int, column: int, table: tuple[Color, ...], base: Style, *, plain: bool
    ) -> Segment:
        grid = self._grid
        assert grid is not None
        rows = [row for row in (top, top + 1) if row < grid.values.shape[0]]
        here = self._at[1] == column and self._at[0] in rows
        if any(grid.nan[row, column] for row in rows):
            return self._bad("✖", base, here)
        if any(grid.inf[row, column] for row in rows):
            return self._bad("∞", base, here)
        level = [int(self._levels[row, column]) for row in rows]
        if plain:
            shade = colours.SHADES[self._shade(max(level))]
            return Segment(shade, base + Style(reverse=here))
        upper = table[level[0]] if level[0] >= 0 else None
        lower = table[level[1]] if len(level) > 1 and level[1] >= 0 else None
        if here:
            sign = "▴" if self._at[0] == top else "▾"
            return Segment(sign, Style(bgcolor=upper or lower, reverse=False, bold=True))
        if lower is None and upper is None:
            return Segment("·", base)
        if lower is None:
            return Segment("▀", base + Style(color=upper))
        if upper is None:
            return Segment("▄", base + Style(color=lower))
        return Segment("▀", Style(color=upper, bgcolor=lower))

    def _bad(self, sign: str, base: Style, here: bool) -> Segment:
        style = base + self.get_component_rich_style("heatmap--bad", partial=True)
        return Segment(sign, style + Style(reverse=here))

    def _shade(self, level: int) -> int:
        """Return a shade for a level: by magnitude where the scale is centred on 0."""
        share = level / 127
        if self._kind == "diverging":
            share = abs(2 * share - 1)
        return min(int(share * len(colours.SHADES)), len(colours.SHADES) - 1)

    def _colours(self) -> tuple[Color, ...]:
        if self._kind == "sequential":
            return colours.scale("sequential")
        return colours.scale(f"diverging-{'dark' if self.app.current_theme.dark else 'light'}")

    def _scale_line(self, width: int, base: Style) -> Strip:
        muted = base + self.get_component_rich_style("heatmap--scale", partial=True)
        segments = [Segment(f"{number(self._low)} ", muted)]
        table = self._colours()
        for at in range(_BAR):
            level = at * 127 // (_BAR - 1)
            if self.app.no_color:
                segments.append(Segment(colours.SHADES[self._shade(level)], base))
            else:
                segments.append(Segment("█", base + Style(color=table[level])))
        segments.append(Segment(f" {number(self._high)}   ✖ NaN  ∞ Inf", muted))
        return Strip(segments).adjust_cell_length(width, base)
