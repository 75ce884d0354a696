"""The source file of the current op, its line marked, each line annotated with what it did."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tracelens_tui import sources
from tracelens_tui.sources import Annotations, LineFacts, SourceFile
from tracelens_tui.texts import duration, fit, number, safe

_GUTTER = 6
_NOTE = 24


class SourcePane(ScrollView, can_focus=True):
    """Shows one file around one line; says so where the file is missing."""

    DEFAULT_CSS = """
    SourcePane { background: $background; overflow-x: hidden; scrollbar-size-vertical: 1; }
    SourcePane > .source--line { background: $here; text-style: bold; }
    SourcePane > .source--gutter, SourcePane > .source--comment { color: $quiet; }
    SourcePane > .source--keyword { color: $text-accent; }
    SourcePane > .source--string { color: $text-success; }
    SourcePane > .source--number { color: $text-warning; }
    SourcePane > .source--name { color: $text-primary; }
    SourcePane > .source--error { color: $text-error; text-style: bold; }
    SourcePane > .source--note { color: $quiet; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"source--{name}"
        for name in "line gutter comment keyword string number name error note".split()
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "scroll_down", "down", show=False, id="source.down"),
        Binding("up,k", "scroll_up", "up", show=False, id="source.up"),
    ]

    HELP = """The source file of the current op. `▶` marks its line; at the right of a line stand
    the health, number and time of the ops that it issued in this step."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._file = SourceFile()
        self._name = ""
        self._line = 0
        self._notes = Annotations()
        self._styles: dict[str, Style] = {}

    def show(self, name: str, file: SourceFile, line: int) -> None:
        """Show a file with a line marked, in the middle of the pane.

        Args:
            name: the file as the trace names it; empty if the op has no source line.
            file: its lines.
            line: the line to mark.
        """
        self._file = file
        self._line = line
        self._name = name
        title = f"{fit(safe(self._name), 60, keep_end=True)}:{line}" if self._name else "no source"
        if file.problem and self._name:
            title += "  (not here)"
        self.border_title = Text(title)
        self.virtual_size = Size(self.size.width, max(1, self._height()))
        if self._rows_are_lines():
            top = line - 1 - self.size.height // 2
            self.scroll_to(y=max(0, top), animate=False, force=True, immediate=True)
        else:
            self._to_known_line()
        self.refresh()

    def annotate(self, notes: Annotations) -> None:
        """Show what the lines did."""
        self._notes = notes
        self.virtual_size = Size(self.size.width, max(1, self._height()))
        if not self._rows_are_lines():
            self._to_known_line()
        self.refresh()

    def _to_known_line(self) -> None:
        """Bring the marked line into view where only lines known from the trace are shown."""
        before = sum(line < self._line for line in self._notes.lines) if self._is_annotated() else 0
        top = before + 2 - self.size.height // 2
        self.scroll_to(y=max(0, top), animate=False, force=True, immediate=True)

    @property
    def line(self) -> int:
        """The marked line."""
        return self._line

    def notify_style_update(self) -> None:
        """The theme changed."""
        self._styles.clear()
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        """Draw one source line, or one line of the message that there is none."""
        width = self.scrollable_content_region.width
        index = round(self.scroll_offset.y) + y
        base = self.rich_style
        if self._rows_are_lines():
            if index >= len(self._file.lines):
                return Strip.blank(width, base)
            return self._source_line(index + 1, self._file.lines[index], width, base)
        return self._without_file(index, width, base)

    def _rows_are_lines(self) -> bool:
        return bool(self._file.lines)

    def _height(self) -> int:
        if self._rows_are_lines():
            return len(self._file.lines)
        return 3 + len(self._notes.lines) if self._is_annotated() else 3

    def _is_annotated(self) -> bool:
        return bool(self._name) and self._notes.file == self._name

    def _source_line(
        self, number_: int, pieces: tuple[sources.Piece, ...], width: int, base: Style
    ) -> Strip:
        here = number_ == self._line
        style = base + self._style("line") if here else base
        mark = "▶" if here else " "
        segments = [Segment(f"{number_:>4}{mark} ", style + self._style("gutter"))]
        facts = self._notes.lines.get(number_) if self._is_annotated() else None
        room = width - _GUTTER - (_NOTE if facts is not None and width > 56 else 0)
        note = "" if facts is None else _note(facts, _NOTE if width > 56 else 2)
        if facts is not None and width <= 56:
            room -= 2
        for text, tone in pieces:
            if room <= 0:
                break
            shown = text[:room]
            room -= len(shown)
            segments.append(Segment(shown, style + self._style(tone) if tone else style))
        if note:
            segments.append(Segment(" " * max(room, 0), style))
            bad = facts is not None and facts.health.tone == "error"
            segments.append(Segment(note, style + self._style("error" if bad else "note")))
        return Strip(segments).adjust_cell_length(width, style)

    def _without_file(self, index: int, width: int, base: Style) -> Strip:
        """Draw what the trace itself knows of a file that is not here."""
        note = base + self._style("note")
        if not self._name:
            text = "this op has no source line" if index == 0 else ""
            return Strip([Segment(fit(f" {text}", width), note)]).adjust_cell_length(width, base)
        if index == 0:
            text = f" {self._file.problem}"
            return Strip([Segment(fit(text, width), note)]).adjust_cell_length(width, base)
        if index == 1:
            text = " from the trace:"
            return Strip([Segment(fit(text, width), note)]).adjust_cell_length(width, base)
        known = sorted(self._notes.lines) if self._is_annotated() else []
        if index - 2 >= len(known):
            return Strip.blank(width, base)
        line = known[index - 2]
        return self._source_line(line, ((self._notes.lines[line].code, ""),), width, base)

    def _style(self, name: str) -> Style:
        known = self._styles.get(name)
        if known is None:
            known = self.get_component_rich_style(f"source--{name}", partial=True)
            self._styles[name] = known
        return known


def _note(facts: LineFacts, width: int) -> str:
    """Return a line's annotation: glyph, number of ops, time or range of values."""
    if width <= 2:
        return f" {facts.health.glyph}"
    times = f"{facts.n_ops}× " if facts.n_ops > 1 else ""
    spent = duration(facts.duration_ns)
    text = f"{facts.health.glyph} {times}{spent}"
    if facts.low is not None and facts.high is not None:
        peak = max(abs(facts.low), abs(facts.high))
        text += f" |x|≤{number(peak)}"
    return " " + fit(text, width - 1).ljust(width - 1)
