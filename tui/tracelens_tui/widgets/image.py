"""A tensor as an image: half blocks in the colours of its channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from tracelens_tui.colours import SHADES


class Picture(Widget, can_focus=True):
    """Draws (height, width, 1 or 3), its values stretched between their least and greatest."""

    DEFAULT_CSS = "Picture { background: $background; height: 1fr; }"
    HELP = """The tensor as an image, its values stretched from least to greatest. Magenta marks an
    element that is not finite."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._image: NDArray[Any] | None = None
        self._low, self._high = 0.0, 1.0
        self._pixels: NDArray[np.uint8] | None = None
        self._for: tuple[int, int] = (0, 0)

    def show(self, image: NDArray[Any], low: float | None, high: float | None) -> None:
        """Draw an image."""
        self._image = image
        self._low, self._high = low or 0.0, high if high is not None else 1.0
        self._pixels = None
        self.refresh()

    def _drawn(self) -> NDArray[np.uint8]:
        """Return the pixels for the widget's size, uint8 of shape (rows, columns, 3)."""
        room = (self.size.width, self.size.height)
        if self._pixels is not None and self._for == room:
            return self._pixels
        assert self._image is not None
        height, width = self._image.shape[:2]
        # A cell is twice as high as wide, and holds two pixels: pixels are square.
        scale = min(room[0] / width, 2 * room[1] / height)
        rows = max(1, min(int(height * scale), 2 * room[1]))
        columns = max(1, min(int(width * scale), room[0]))
        taken = np.asarray(
            self._image[np.arange(rows) * height // rows][:, np.arange(columns) * width // columns]
        ).astype(np.float64)
        bad = ~np.isfinite(taken).all(axis=2)
        with np.errstate(invalid="ignore"):
            bright = (taken - self._low) / ((self._high - self._low) or 1.0) * 255
        pixels = np.nan_to_num(np.clip(bright, 0, 255)).astype(np.uint8)
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        pixels[bad] = (255, 0, 255)
        self._pixels, self._for = pixels, room
        return pixels

    def render_line(self, y: int) -> Strip:
        """Draw two rows of pixels."""
        base = self.rich_style
        width = self.size.width
        if self._image is None:
            return Strip.blank(width, base)
        pixels = self._drawn()
        top = 2 * y
        if top >= pixels.shape[0]:
            return Strip.blank(width, base)
        upper = pixels[top]
        lower = pixels[top + 1] if top + 1 < pixels.shape[0] else None
        segments = []
        for column in range(pixels.shape[1]):
            if self.app.no_color:
                shade = int(upper[column].mean()) * (len(SHADES) - 1) // 255
                segments.append(Segment(SHADES[shade], base))
                continue
            below = Color.from_rgb(*lower[column]) if lower is not None else None
            style = Style(color=Color.from_rgb(*upper[column]), bgcolor=below)
            segments.append(Segment("▀", style))
        return Strip(Segment.simplify(segments)).adjust_cell_length(width, base)
