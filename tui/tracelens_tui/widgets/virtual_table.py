"""A table of any number of rows: it draws the lines in view and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tracelens_tui.texts import fit


class Rows(Protocol):
    """Where the rows come from."""

    @property
    def count(self) -> int:
        """How many rows there are."""

    def row(self, index: int) -> Any:
        """Return a row, ``None`` if it is not there yet."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        width: cells it takes; the least where ``share`` is not 0.
        text: the cell's text of a row.
        tone: the component class that colours the cell (without prefix); empty for plain text.
        right: align to the right.
        share: part of the room left over that the column takes.
        rank: where the terminal is narrow, columns of the highest rank are left out first.
        keep_end: cut at the front; the end of a module path tells more than its beginning.
    """

    title: str
    width: int
    text: Callable[[Any], str]
    tone: Callable[[Any], str] | None = None
    right: bool = False
    share: int = 0
    rank: int = 0
    keep_end: bool = False


class VirtualTable(ScrollView, can_focus=True):
    """Rows of fixed height 1 under a heading, with a cursor line.

    The cost of drawing does not depend on the number of rows: ``render_line`` asks for one row.
    """

    DEFAULT_CSS = """
    VirtualTable { background: $background; color: $foreground; overflow-x: hidden;
        scrollbar-size-vertical: 1; }
    VirtualTable > .virtual-table--heading { color: $quiet; text-style: bold; }
    VirtualTable > .virtual-table--cursor { background: $here; }
    VirtualTable:focus > .virtual-table--cursor { background: $block-cursor-background;
        color: $block-cursor-foreground; text-style: bold; }
    VirtualTable > .virtual-table--error { color: $text-error; text-style: bold; }
    VirtualTable > .virtual-table--warning { color: $text-warning; }
    VirtualTable > .virtual-table--good { color: $text-success; }
    VirtualTable > .virtual-table--muted { color: $quiet; }
    VirtualTable > .virtual-table--accent { color: $text-accent; }
    VirtualTable > .virtual-table--mark { color: $text-warning; text-style: bold; }
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"virtual-table--{name}"
        for name in "heading cursor error warning good muted accent mark".split()
    }

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False, id="table.up"),
        Binding("down,j", "move(1)", "down", show=False, id="table.down"),
        Binding("pageup,ctrl+b", "page(-1)", "page up", show=False, id="table.page_up"),
        Binding("pagedown,ctrl+f", "page(1)", "page down", show=False, id="table.page_down"),
        Binding("home", "jump_to(0)", "first row", show=False, id="table.home"),
        Binding("end", "jump_to(-1)", "last row", show=False, id="table.end"),
        Binding("enter", "choose", "open", show=False, id="table.choose"),
    ]

    @dataclass
    class Moved(Message):
        """The cursor went to another row."""

        table: VirtualTable
        index: int

        @property
        def control(self) -> VirtualTable:
            """The table, for ``@on`` selectors."""
            return self.table

    @dataclass
    class Chosen(Message):
        """Enter, or a click on the cursor's row."""

        table: VirtualTable
        index: int

        @property
        def control(self) -> VirtualTable:
            """The table, for ``@on`` selectors."""
            return self.table

    def __init__(
        self, columns: Sequence[Column], *, id: str | None = None, empty: str = "nothing here"
    ) -> None:
        super().__init__(id=id)
        self._columns = tuple(columns)
        self._rows: Rows | None = None
        self._empty = empty
        self._layout: list[tuple[Column, int]] = []
        self._styles: dict[str, Style] = {}
        self.cursor = 0
        self.marked: Callable[[Any], str] | None = None
        """Tells the one-character mark of a row (breakpoint, bookmark); shown before it."""

    def show(self, rows: Rows, *, empty: str | None = None) -> None:
        """Show these rows; the cursor stays where it is, if it can."""
        self._rows = rows
        if empty is not None:
            self._empty = empty
        self.resized()

    def resized(self) -> None:
        """The number of rows changed."""
        count = self._rows.count if self._rows is not None else 0
        self.cursor = max(0, min(self.cursor, count - 1))
        self.virtual_size = Size(self.size.width, count + 1)
        self.refresh()

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return self._rows.count if self._rows is not None else 0

    @property
    def page_rows(self) -> int:
        """How many rows are in view."""
        return max(1, self.scrollable_content_region.height - 1)

    def current(self) -> Any:
        """Return the row under the cursor, ``None`` if there is none yet."""
        return self._rows.row(self.cursor) if self._rows is not None else None

    def go(self, index: int, *, tell: bool = True, centre: bool = False) -> None:
        """Move the cursor to a row and bring it into view.

        Args:
            index: the row; clamped to what there is.
            tell: post ``Moved``.
            centre: if it was out of view, put it in the middle.
        """
        index = max(0, min(index, self.row_count - 1))
        changed = index != self.cursor
        old, self.cursor = self.cursor, index
        top, height = round(self.scroll_offset.y), self.page_rows
        if not top <= index < top + height:
            if centre or abs(index - old) > 2 * height:
                top = index - height // 2
            else:
                top = index if index < top else index - height + 1
            self.scroll_to(y=max(0, top), animate=False, force=True, immediate=True)
        self.refresh()
        if changed and tell:
            self.post_message(self.Moved(self, index))

    def action_move(self, rows: int) -> None:
        """Move the cursor by rows."""
        self.go(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move the cursor by screens."""
        self.go(self.cursor + pages * self.page_rows)

    def action_jump_to(self, index: int) -> None:
        """Move the cursor to a row; -1 is the last."""
        self.go(index if index >= 0 else self.row_count - 1)

    def action_choose(self) -> None:
        """Open the row under the cursor."""
        if self.row_count:
            self.post_message(self.Chosen(self, self.cursor))

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the clicked row; a click on it opens it."""
        offset = event.get_content_offset(self)
        if offset is None or offset.y == 0:
            return
        index = round(self.scroll_offset.y) + offset.y - 1
        if index >= self.row_count:
            return
        if index == self.cursor and event.chain > 1:
            self.action_choose()
        self.go(index)

    def on_resize(self) -> None:
        """Share the new width among the columns."""
        self._layout = []
        self.resized()

    def notify_style_update(self) -> None:
        """The theme changed."""
        self._styles.clear()
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        """Draw one line: the heading, or the row at this line."""
        width = self.scrollable_content_region.width
        if not self._layout:
            self._layout = _share(self._columns, width - 1)
        base = self.rich_style
        if y == 0:
            return self._line([_Cell(c.title, w, c.right) for c, w in self._layout],
                              base + self._style("heading"), width, " ")  # fmt: skip
        index = round(self.scroll_offset.y) + y - 1
        if self._rows is None or index >= self._rows.count:
            text = f" {self._empty}" if y == 1 and not self.row_count else ""
            return Strip([Segment(fit(text, width).ljust(width), base + self._style("muted"))])
        row = self._rows.row(index)
        here = index == self.cursor
        style = base + self._style("cursor") if here else base
        if row is None:
            return self._line([_Cell("…", width - 1, False)], style, width, " ")
        mark = self.marked(row) if self.marked is not None else ""
        cells = []
        for column, cells_wide in self._layout:
            text = fit(column.text(row), cells_wide, keep_end=column.keep_end)
            tone = column.tone(row) if column.tone is not None else ""
            # On the cursor line the line's own colours win: contrast before hue.
            cells.append(_Cell(text, cells_wide, column.right, "" if here else tone))
        return self._line(cells, style, width, mark or ("▸" if here else " "))

    def _line(self, cells: Sequence[_Cell], style: Style, width: int, mark: str) -> Strip:
        mark_style = style + self._style("mark") if mark.strip() else style
        segments = [Segment(mark, mark_style)]
        for cell in cells:
            text = cell.text.rjust(cell.width) if cell.right else cell.text.ljust(cell.width)
            segments.append(Segment(text, style + self._style(cell.tone) if cell.tone else style))
            segments.append(Segment(" ", style))
        return Strip(segments).adjust_cell_length(width, style)

    def _style(self, name: str) -> Style:
        known = self._styles.get(name)
        if known is None:
            known = self.get_component_rich_style(f"virtual-table--{name}", partial=True)
            self._styles[name] = known
        return known

    def region_of_cursor(self) -> Region:
        """Return where the cursor line is on the screen."""
        y = self.cursor - round(self.scroll_offset.y) + 1
        return Region(self.region.x, self.region.y + y, self.region.width, 1)


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    width: int
    right: bool
    tone: str = ""


def _share(columns: Sequence[Column], width: int) -> list[tuple[Column, int]]:
    """Choose the columns that fit, and share what is left among those that grow."""
    chosen = list(columns)
    while len(chosen) > 1 and sum(c.width + 1 for c in chosen) > width:
        chosen.remove(max(chosen, key=lambda column: column.rank))
    left = max(0, width - sum(c.width + 1 for c in chosen))
    shares = sum(column.share for column in chosen)
    layout = []
    for column in chosen:
        extra = left * column.share // shares if shares else 0
        layout.append((column, column.width + extra))
    return layout
