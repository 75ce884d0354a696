"""The last line: the keys that matter most here.

One widget, where Textual's footer has one a key: it is part of what the first rows wait for.
"""

from __future__ import annotations

from rich.text import Text
from textual.binding import Binding
from textual.widgets import Static


class Keys(Static):
    """Keys and words, cut off at the right where the terminal is narrow."""

    DEFAULT_CSS = """
    Keys { height: 1; dock: bottom; background: $panel; color: $foreground; padding: 0 1;
        link-style: none; link-color: $foreground; link-background: $panel; }
    """

    def on_mount(self) -> None:
        """Collect the keys of the screen, then those of the application."""
        text = Text(no_wrap=True, overflow="ellipsis")
        for owner, name in ((self.screen, "screen"), (self.app, "app")):
            for binding in type(owner).__dict__.get("BINDINGS", ()):
                if isinstance(binding, Binding) and binding.show:
                    piece = Text()
                    piece.append(binding.key_display or binding.key, "bold")
                    piece.append(f" {binding.description}")
                    piece.apply_meta({"@click": f"{name}.{binding.action}"})
                    text.append_text(piece)
                    text.append("  ")
        self.update(text)
