"""Curves over steps, one below the other, with a cursor that is a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tracelens_tui.curves import Curve, columns
from tracelens_tui.texts import fit, safe

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LABEL = 16
_VALUES = 20
_WIDEST = 6


class CurvesPane(Widget, can_focus=True):
    """Each curve: its name, its bars, its value at the cursor and its range."""

    DEFAULT_CSS = """
    CurvesPane { background: $background; }
    CurvesPane > .curves--bar { color: $primary; }
    CurvesPane > .curves--cursor { background: $rule; text-style: bold; }
    CurvesPane > .curves--bad { color: $text-error; text-style: bold; }
    CurvesPane > .curves--muted { color: $quiet; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"curves--{name}" for name in "bar cursor bad muted".split()
    }
    HELP = """One bar a step, or the mean of several; `✖` where the value was NaN or Inf. Left and
    right move the cursor, **enter** goes to the first op of that step; a click does both."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "left", show=False, id="curves.left"),
        Binding("right,l", "move(1)", "right", show=False, id="curves.right"),
        Binding("pageup", "move(-20)", "20 left", show=False, id="curves.page_left"),
        Binding("pagedown", "move(20)", "20 right", show=False, id="curves.page_right"),
        Binding("home", "move(-1000000)", "first", show=False, id="curves.home"),
        Binding("end", "move(1000000)", "last", show=False, id="curves.end"),
        Binding("enter", "choose", "go to this step", show=False, id="curves.choose"),
    ]

    @dataclass
    class Chosen(Message):
        """A step was chosen."""

        step: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._curves: list[Curve] = []
        self._place = 0

    def show(self, curves: list[Curve], step: int | None) -> None:
        """Draw curves, the cursor at a step."""
        self._curves = curves
        if step is not None and self._n:
            self._place = min(int(np.searchsorted(curves[0].steps, step)), self._n - 1)
        self.refresh()

    @property
    def step(self) -> int | None:
        """The step under the cursor."""
        return int(self._curves[0].steps[min(self._place, self._n - 1)]) if self._n else None

    @property
    def _n(self) -> int:
        """How many steps there are."""
        return len(self._curves[0].steps) if self._curves else 0

    @property
    def _wide(self) -> int:
        """Cells that a step takes where there are few; 1 where a cell stands for several."""
        return max(1, min(_WIDEST, self._room() // max(self._n, 1)))

    @property
    def _bars(self) -> int:
        """How many bars are drawn."""
        return max(1, min(self._n, self._room()))

    def _room(self) -> int:
        return max(8, self.size.width - _LABEL - _VALUES - 2)

    def _each(self) -> int:
        """Lines that a curve takes."""
        return max(1, min(4, self.size.height // max(len(self._curves), 1)))

    def action_move(self, bars: int) -> None:
        """Move the cursor by bars."""
        if self._n:
            steps = bars * max(1, self._n // self._bars)
            self._place = max(0, min(self._place + steps, self._n - 1))
            self.refresh()

    def action_choose(self) -> None:
        """Go to the step under the cursor."""
        if self.step is not None:
            self.post_message(self.Chosen(self.step))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the click is, and go there."""
        offset = event.get_content_offset(self)
        if offset is not None and self._curves and offset.x >= _LABEL:
            bar = min((offset.x - _LABEL) // self._wide, self._bars - 1)
            self._place = bar * self._n // self._bars
            self.refresh()
            self.action_choose()

    def render_line(self, y: int) -> Strip:
        """Draw one line of one curve."""
        base = self.rich_style
        width = self.size.width
        each = self._each()
        number_, line = divmod(y, each)
        if not self._curves:
            text = " no step has ended yet" if y == 0 else ""
            return Strip([Segment(text, base)]).adjust_cell_length(width, base)
        if number_ >= len(self._curves):
            return Strip.blank(width, base)
        curve = self._curves[number_]
        muted = base + self.get_component_rich_style("curves--muted", partial=True)
        label = fit(safe(curve.name), _LABEL - 1) if line == each - 1 else ""
        segments = [Segment(f"{label:<{_LABEL}}", muted)]
        means, bad = columns(curve, self._room())
        finite = means[np.isfinite(means)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        tall = each - 1 if each >= 3 else each  # a line between curves, where there is room
        floor = (each - 1 - line) * 8
        bar = base + self.get_component_rich_style("curves--bar", partial=True)
        cursor = self.get_component_rich_style("curves--cursor", partial=True)
        wrong = base + self.get_component_rich_style("curves--bad", partial=True)
        for at, (mean, is_bad) in enumerate(zip(means, bad, strict=True)):
            style = wrong if is_bad else bar
            if is_bad and line == each - 1:
                sign = "✖"
            elif np.isnan(mean) or is_bad:
                sign = " "
            else:
                share = (mean - low) / (high - low) if high > low else float(mean != 0) / 2
                sign = _EIGHTHS[max(0, min(8, round(1 + share * (tall * 8 - 1)) - floor))]
            here = at == self._place * self._bars // max(self._n, 1)
            segments.append(Segment(sign * self._wide, style + cursor if here else style))
        shown = sum(len(segment.text) for segment in segments)
        segments.append(Segment(" " * max(1, _LABEL + self._room() - shown + 1), base))
        segments.append(Segment(self._value(curve, line, each, low, high), muted))
        return Strip(segments).adjust_cell_length(width, base)

    def _value(self, curve: Curve, line: int, each: int, low: float, high: float) -> str:
        """Return what stands at the right: the range at the top, the cursor's value below."""
        if line == 0 and each > 1:
            return f"{curve.text(low)} … {curve.text(high)}"
        if line != each - 1 or self.step is None:
            return ""
        place = int(np.searchsorted(curve.steps, self.step))
        if place < len(curve.values) and curve.known[place]:
            return f"= {curve.text(float(curve.values[place]))}"
        return ""
