"""Colours: a dark and a light theme of our own; Textual brings `ansi-dark` and `ansi-light`.

Accents are from Okabe and Ito's palette, which people with a colour-vision deficiency tell apart;
every state has a glyph of its own besides.
"""

from __future__ import annotations

from textual.color import Color
from textual.theme import Theme

_ORANGE, _SKY, _GREEN = "#E69F00", "#56B4E9", "#009E73"
_BLUE, _VERMILION, _PURPLE = "#0072B2", "#D55E00", "#CC79A7"

DARK = Theme(
    name="tracelens-dark",
    primary=_SKY,
    secondary=_PURPLE,
    accent=_SKY,
    foreground="#E4E4E4",
    background="#14171C",
    surface="#1B1F26",
    panel="#252B34",
    success="#3FC79A",
    warning=_ORANGE,
    error="#FF7A3D",
    dark=True,
)

LIGHT = Theme(
    name="tracelens-light",
    primary=_BLUE,
    secondary="#8A3D6B",
    accent=_BLUE,
    foreground="#1B1F26",
    background="#FBFBF8",
    surface="#F1F1EC",
    panel="#E3E4DF",
    success="#00704F",
    warning="#8A5A00",
    error="#B03A00",
    dark=False,
)

THEMES = (DARK, LIGHT)

CYCLE = ("tracelens-dark", "tracelens-light", "ansi-dark", "ansi-light")
"""What the theme command goes through."""


def extra_variables(theme: Theme, known: dict[str, str]) -> dict[str, str]:
    """Return the colours that the style sheets use beyond Textual's own.

    Args:
        theme: the current theme.
        known: its variables.

    Returns:
        ``quiet`` for text that stands back, ``rule`` for lines between panes, ``here`` for the
        background of a cursor line without focus; plain colours, since a strip of text cannot be
        translucent.
    """
    if getattr(theme, "ansi", False):
        return {"quiet": "ansi_bright_black", "rule": "ansi_bright_black", "here": "ansi_default"}
    background = Color.parse(known["background"])
    foreground = Color.parse(known["foreground"])
    return {
        "quiet": background.blend(foreground, 0.62).hex,
        "rule": background.blend(foreground, 0.28).hex,
        "here": background.blend(foreground, 0.16).hex,
    }
