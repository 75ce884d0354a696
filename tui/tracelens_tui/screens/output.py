"""What the program beside us prints."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tracelens_tui.program import Program

_INTERVAL_S = 0.3


class OutputScreen(ModalScreen[None]):
    """The end of the program's output, kept up to date."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,O", "dismiss", "close", id="output.close"),
        Binding("down,j", "scroll(1)", show=False, id="output.down"),
        Binding("up,k", "scroll(-1)", show=False, id="output.up"),
    ]

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        self._shown: list[str] | None = None

    def compose(self) -> ComposeResult:
        """Lay out the text."""
        with VerticalScroll(id="answer-page") as page:
            page.border_title = Text(f"output: {self._program.log.name} — esc closes")
            yield Static(id="output-text")

    def on_mount(self) -> None:
        """Show it, and go on showing it."""
        self._refresh()
        self.set_interval(_INTERVAL_S, self._refresh)

    def _refresh(self) -> None:
        lines = self._program.output()
        if lines == self._shown:
            return
        self._shown = lines
        text = Text("\n".join(lines) or "nothing printed yet", no_wrap=True, overflow="ellipsis")
        self.query_one("#output-text", Static).update(text)
        self.query_one("#answer-page").scroll_end(animate=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll."""
        self.query_one("#answer-page").scroll_relative(y=3 * lines, animate=False)
