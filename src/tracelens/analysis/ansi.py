"""Colour for terminals, in one place."""

from __future__ import annotations

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Paint:
    """Wraps text in ANSI codes, or leaves it alone.

    Args:
        on: whether to colour; whoever asks honours ``NO_COLOR`` and tests for a terminal.
    """

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, text: str, *styles: str) -> str:
        """Return the text in the styles (``"bold"``, ``"red"`` …)."""
        if not self.on or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"
