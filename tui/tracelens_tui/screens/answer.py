"""What a command has to say when it is more than a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static


class AnswerScreen(ModalScreen[None]):
    """Lines of text over the screen below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "close", id="answer.close"),
        Binding("down,j", "scroll(1)", show=False, id="answer.down"),
        Binding("up,k", "scroll(-1)", show=False, id="answer.up"),
    ]

    def __init__(self, lines: Sequence[str], title: str = "") -> None:
        super().__init__()
        self._lines = lines
        self._title = title

    def compose(self) -> ComposeResult:
        """Lay out the lines."""
        with VerticalScroll(id="answer-page") as page:
            page.border_title = Text(self._title or "esc closes")
            yield Static(Text("\n".join(self._lines), no_wrap=True, overflow="ellipsis"))

    def action_scroll(self, lines: int) -> None:
        """Scroll."""
        self.query_one("#answer-page").scroll_relative(y=3 * lines, animate=False)
