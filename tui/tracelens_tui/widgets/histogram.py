"""The distribution of a tensor's finite values, as bars of eighth blocks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from tracelens_tui.texts import number

_EIGHTHS = " ▁▂▃▄▅▆▇█"


class Histogram(Widget):
    """Bars over an axis that names the ends and 0."""

    DEFAULT_CSS = """
    Histogram { background: $background; height: 7; }
    Histogram > .histogram--bar { color: $primary; }
    Histogram > .histogram--axis { color: $quiet; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"histogram--bar", "histogram--axis"}

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._edges: NDArray[np.float64] = np.zeros(1)

    def show(self, counts: NDArray[np.int64], edges: NDArray[np.float64]) -> None:
        """Draw counts between edges."""
        self._counts, self._edges = counts, edges
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line of the bars, or the axis in the last."""
        base = self.rich_style
        width, height = self.size.width, self.size.height
        if not len(self._counts):
            text = " no finite value" if y == 0 else ""
            return Strip([Segment(text, base)]).adjust_cell_length(width, base)
        axis = base + self.get_component_rich_style("histogram--axis", partial=True)
        bins, each = self._bins(width)
        if y == height - 1:
            return Strip([Segment(self._axis(len(bins) * each), axis)]).adjust_cell_length(
                width, base
            )
        tall = (height - 1) * 8
        # The root makes a thin tail visible beside a tall middle.
        heights = np.sqrt(bins / max(int(bins.max()), 1)) * tall
        eighths = np.where(bins > 0, np.maximum(np.ceil(heights), 1), 0).astype(int)
        floor = (height - 2 - y) * 8
        text = "".join(_EIGHTHS[max(0, min(8, int(value) - floor))] * each for value in eighths)
        style = base + self.get_component_rich_style("histogram--bar", partial=True)
        return Strip([Segment(text, style)]).adjust_cell_length(width, base)

    def _bins(self, width: int) -> tuple[NDArray[np.int64], int]:
        """Return counts that fit the width, and the cells each takes."""
        bins = self._counts
        if len(bins) > width:
            edges = np.linspace(0, len(bins), max(width, 1) + 1).astype(np.int64)[:-1]
            bins = np.add.reduceat(bins, edges)
        return bins, max(1, width // max(len(bins), 1))

    def _axis(self, width: int) -> str:
        low, high = float(self._edges[0]), float(self._edges[-1])
        left, right = number(low), number(high)
        line = list(left + " " * max(0, width - len(left) - len(right)) + right)
        if low < 0 < high:
            zero = int(-low / (high - low) * width)
            if len(left) < zero < width - len(right) - 1:
                line[zero] = "0"
        return "".join(line)[:width]
