"""Help for the focused pane: what it shows, its keys, the keys everywhere, the glyphs."""

from __future__ import annotations

import re
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Markdown, Static

from tracelens_tui import health, keymap


class HelpScreen(ModalScreen[None]):
    """One page; any of the closing keys leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss", "close", id="help.close"),
        Binding("down,j", "scroll(1)", show=False, id="help.down"),
        Binding("up,k", "scroll(-1)", show=False, id="help.up"),
    ]

    def __init__(self, focused: Widget | None, screen: Screen[object]) -> None:
        super().__init__()
        self._focused = focused
        self._screen = screen

    def compose(self) -> ComposeResult:
        """Lay out the page."""
        with VerticalScroll(id="help-page") as page:
            page.border_title = "help — esc closes"
            title = _plain(getattr(self._focused, "border_title", None) or "this pane")
            text = getattr(self._focused, "HELP", None) or getattr(self._screen, "HELP", "")
            if text:
                words = " ".join(text.split())
                yield Markdown(f"**{title}** — {words}")
            own = _own_keys(self._focused)
            if own:
                yield Static(_table("in this pane", own))
            for title, keys in keymap.groups().items():
                rows = [(key.shown or f":{key.id}", key.help) for key in keys]
                yield Static(_table(title, rows))
            legend = [(state.glyph, state.word) for state in health.LEGEND]
            yield Static(_table("health", legend))

    def action_scroll(self, lines: int) -> None:
        """Scroll the page."""
        self.query_one("#help-page").scroll_relative(y=3 * lines, animate=False)


def _own_keys(widget: Widget | None) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for node in widget.ancestors_with_self if widget is not None else ():
        if isinstance(node, Screen):
            break
        for kind in type(node).__mro__:
            if not kind.__module__.startswith("tracelens_tui"):
                continue
            for binding in kind.__dict__.get("BINDINGS", ()):
                if isinstance(binding, Binding) and binding.description:
                    keys = " ".join(keymap.shown(key) for key in binding.key.split(","))
                    found.setdefault(keys, binding.description)
    return list(found.items())


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), expand=True,
                  show_header=False, title_style="bold")  # fmt: skip
    for _ in range(2):
        table.add_column(width=9, no_wrap=True)
        table.add_column(ratio=1)
    half = (len(rows) + 1) // 2
    for at in range(half):
        cells: list[Text] = []
        for key, meaning in (rows[at], rows[at + half] if at + half < len(rows) else ("", "")):
            cells += [Text(key, "bold"), Text(meaning)]
        table.add_row(*cells)
    return table


def _plain(title: str) -> str:
    """Return a title, which is markup, as a text that Markdown shows as it is."""
    return re.sub(r"([^\w\s])", r"\\\1", Content.from_markup(title).plain)
