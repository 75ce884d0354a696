"""The line at the bottom in which searches, filters and commands are typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.suggester import SuggestFromList
from textual.widgets import Input, Label

HINTS = {
    "/": "search: a word, or op~soft, train.py:88, @nan, absmax>1e4",
    "f": "filter: a word or an expression; empty shows all",
    ":": "command; tab completes, up and down recall",
    "g": "go to: op id, step:3, or 'mark",
    "m": "name of the bookmark",
    "o": "the trace to compare with",
    "[": "slice: [0, :, 3] or [..., 5:10]; [] is all",
}


class Prompt(Horizontal):
    """Asks for one line; hidden until it is opened."""

    DEFAULT_CSS = """
    Prompt { dock: bottom; height: 1; display: none; background: $panel; }
    Prompt.open { display: block; }
    Prompt Label { width: auto; padding: 0 1 0 1; text-style: bold; color: $text-accent; }
    Prompt Input { width: 1fr; height: 1; border: none; padding: 0; background: $panel; }
    Prompt Input:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "cancel", show=False, id="prompt.cancel"),
        Binding("up", "recall(-1)", "earlier", show=False, id="prompt.earlier"),
        Binding("down", "recall(1)", "later", show=False, id="prompt.later"),
    ]

    @dataclass
    class Entered(Message):
        """A line was entered; ``kind`` is what opened the prompt."""

        kind: str
        text: str

    def __init__(self) -> None:
        super().__init__()
        self._kind = ":"
        self._history: dict[str, list[str]] = {}
        self._at = 0

    async def open(self, kind: str, *, text: str = "", words: tuple[str, ...] = ()) -> None:
        """Open it.

        Args:
            kind: ``/``, ``f``, ``:``, ``g`` or ``m``.
            text: what stands in it.
            words: completions.
        """
        if not self.children:
            # Made when it is first needed: an input line is a costly widget to start with.
            await self.mount(Label("", markup=False), Input(compact=True))
        self._kind = kind
        self._at = len(self._history.get(kind, ()))
        self.query_one(Label).update(kind)
        line = self.query_one(Input)
        line.suggester = SuggestFromList(words) if words else None
        line.placeholder = HINTS.get(kind, "")
        line.value = text
        line.cursor_position = len(text)
        self.add_class("open")
        self._before = self.screen.focused
        # At once, not with the next message: who types on must not type into the table.
        self.screen.set_focus(line)

    def close(self) -> None:
        """Hide it and give the focus back."""
        self.remove_class("open")
        before = getattr(self, "_before", None)
        if before is not None and before.is_attached:
            before.focus()

    def action_cancel(self) -> None:
        """Leave without entering anything."""
        self.close()

    def action_recall(self, direction: int) -> None:
        """Bring back what was entered before."""
        known = self._history.get(self._kind, [])
        self._at = max(0, min(self._at + direction, len(known)))
        line = self.query_one(Input)
        line.value = known[self._at] if self._at < len(known) else ""
        line.cursor_position = len(line.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        known = self._history.setdefault(self._kind, [])
        if text and text not in known[-1:]:
            known.append(text)
        self.close()
        self.post_message(self.Entered(self._kind, text))
