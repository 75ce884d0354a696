"""Lanes of one step: what ran when, zoomed and panned, with a cursor on one op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tracelens_tui import lanes
from tracelens_tui.lanes import FILLS, Lane, StepLanes
from tracelens_tui.texts import duration, fit, safe

_LABEL = 16
_TONES = {"forward": "forward", "backward": "backward", "optimizer": "optimizer"}
_PARTS = " ▁▂▃▄▅▆▇"


class LanesPane(Widget, can_focus=True):
    """A line a lane, under a scale of time; the last line names what is under the cursor."""

    DEFAULT_CSS = """
    LanesPane { background: $background; }
    LanesPane > .lanes--forward { color: $primary; }
    LanesPane > .lanes--backward { color: $warning; }
    LanesPane > .lanes--optimizer { color: $success; }
    LanesPane > .lanes--other { color: $secondary; }
    LanesPane > .lanes--bad { color: $text-error; text-style: bold; }
    LanesPane > .lanes--muted { color: $quiet; }
    LanesPane > .lanes--cursor { background: $rule; text-style: bold; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"lanes--{name}" for name in "forward backward optimizer other bad muted cursor".split()
    }
    HELP = """What ran when in this step: `█` forward, `▓` backward, `▒` optimizer, `░` data, `✖` a
    non-finite output. Arrows move the cursor, `+` `-` zoom, `H` `L` pan, **enter** goes to the
    op."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "left", show=False, id="lanes.left"),
        Binding("right,l", "move(1)", "right", show=False, id="lanes.right"),
        Binding("up,k", "lane(-1)", "lane above", show=False, id="lanes.up"),
        Binding("down,j", "lane(1)", "lane below", show=False, id="lanes.down"),
        Binding("plus,equals_sign", "scale(0.5)", "zoom in", key_display="+", id="lanes.in"),
        Binding("minus", "scale(2.0)", "zoom out", key_display="-", id="lanes.out"),
        Binding("H", "pan(-1)", "pan left", show=False, id="lanes.pan_left"),
        Binding("L", "pan(1)", "pan right", show=False, id="lanes.pan_right"),
        Binding("enter", "choose", "go to this op", show=False, id="lanes.choose"),
    ]

    @dataclass
    class Chosen(Message):
        """An op was chosen."""

        op_id: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._step: StepLanes | None = None
        self._begin, self._span = 0.0, 1.0
        self._lane = self._cell = 0
        self._picked: tuple[Lane, int] | None = None

    def show(self, step: StepLanes, op_id: int | None) -> None:
        """Draw a step, the cursor at an op of it if it is there."""
        if self._step is None or self._step.step != step.step:
            self._begin, self._span = 0.0, float(max(step.length_ns, 1))
        self._step = step
        self._lane = min(self._lane, max(len(step.lanes) - 1, 0))
        for number, lane in enumerate(step.lanes):
            places = [] if op_id is None else (lane.op_ids == op_id).nonzero()[0].tolist()
            if places and lane.kind != "kernel":
                self._lane = number
                self._look_at(float(lane.starts[places[0]]))
                self._picked = lane, places[0]
        self.refresh()

    def _look_at(self, time_ns: float) -> None:
        """Bring a time into the window, and the cursor to it."""
        if not self._begin <= time_ns <= self._begin + self._span:
            self._begin = max(0.0, time_ns - self._span / 2)
        self._cell = int((time_ns - self._begin) / self._span * self._room())
        self._cell = max(0, min(self._cell, self._room() - 1))

    def _room(self) -> int:
        return max(8, self.size.width - _LABEL - 1)

    def _time(self) -> float:
        return self._begin + (self._cell + 0.5) / self._room() * self._span

    def action_move(self, cells: int) -> None:
        """Move the cursor; at the edge the window moves along."""
        cell = self._cell + cells
        if not 0 <= cell < self._room():
            self.action_pan(1 if cells > 0 else -1)
        self._cell = max(0, min(cell, self._room() - 1))
        self.refresh_cursor()

    def action_lane(self, lanes_down: int) -> None:
        """Move the cursor to another lane."""
        if self._step is not None:
            self._lane = max(0, min(self._lane + lanes_down, len(self._step.lanes) - 1))
            self.refresh_cursor()

    def action_scale(self, factor: float) -> None:
        """Zoom around the cursor."""
        if self._step is None:
            return
        time_ns, length = self._time(), float(self._step.length_ns)
        self._span = max(100.0, min(self._span * factor, length))
        self._begin = max(0.0, min(time_ns - self._span / 2, length - self._span))
        self._cell = int((time_ns - self._begin) / self._span * self._room())
        self._cell = max(0, min(self._cell, self._room() - 1))
        self.refresh_cursor()

    def action_pan(self, screens: int) -> None:
        """Move the window by half its width."""
        if self._step is not None:
            most = max(0.0, self._step.length_ns - self._span)
            self._begin = max(0.0, min(self._begin + screens * self._span / 2, most))
            self.refresh_cursor()

    def action_choose(self) -> None:
        """Go to the op under the cursor; from a kernel, to the op that launched it."""
        found = self._under()
        if found is not None:
            lane, index = found
            if lane.op_ids[index] >= 0:
                self.post_message(self.Chosen(int(lane.op_ids[index])))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the click is."""
        offset = event.get_content_offset(self)
        if offset is None or self._step is None or offset.x < _LABEL:
            return
        self._cell = min(offset.x - _LABEL, self._room() - 1)
        self._lane = max(0, min(offset.y - 1, len(self._step.lanes) - 1))
        self.refresh_cursor()
        if event.chain > 1:
            self.action_choose()

    def refresh_cursor(self) -> None:
        """The cursor was moved by hand: what is under it is what counts."""
        self._picked = None
        self.refresh()

    def _under(self) -> tuple[Lane, int] | None:
        if self._picked is not None:
            return self._picked
        if self._step is None or not self._step.lanes:
            return None
        lane = self._step.lanes[self._lane]
        found = lanes.at(lane, self._time(), self._span / self._room())
        return None if found is None else (lane, found)

    def render_line(self, y: int) -> Strip:
        """Draw the scale, a lane, or what is under the cursor."""
        base = self.rich_style
        width = self.size.width
        muted = base + self.get_component_rich_style("lanes--muted", partial=True)
        if self._step is None or not self._step.lanes:
            text = " no op of this step was recorded" if y == 0 and self._step is not None else ""
            return Strip([Segment(text, muted)]).adjust_cell_length(width, base)
        if y == 0:
            return Strip([Segment(self._scale(), muted)]).adjust_cell_length(width, base)
        if y == min(self.size.height - 1, len(self._step.lanes) + 1):
            return Strip([Segment(self._words(), base)]).adjust_cell_length(width, base)
        if y > len(self._step.lanes):
            return Strip.blank(width, base)
        return self._lane_line(y - 1).adjust_cell_length(width, base)

    def _lane_line(self, number: int) -> Strip:
        assert self._step is not None
        base = self.rich_style
        lane = self._step.lanes[number]
        here = number == self._lane
        sign = "▸" if here else " "
        label = base + self.get_component_rich_style("lanes--muted", partial=True)
        segments = [Segment(f"{sign}{fit(safe(lane.label), _LABEL - 2):<{_LABEL - 1}}", label)]
        tone = self.get_component_rich_style(
            f"lanes--{_TONES.get(lane.kind, 'other')}", partial=True
        )
        wrong = self.get_component_rich_style("lanes--bad", partial=True)
        cursor = self.get_component_rich_style("lanes--cursor", partial=True)
        busy, bad = lanes.raster(lane, self._begin, self._begin + self._span, self._room())
        fill = FILLS.get(lane.kind, "█")
        for cell, (share, is_bad) in enumerate(zip(busy, bad, strict=True)):
            style = base + (wrong if is_bad else tone)
            if is_bad:
                sign = "✖"
            elif share >= 0.5:
                sign = fill
            else:
                sign = "·" if 0 < share < 0.06 else _PARTS[min(7, round(share * 16))]
            if here and cell == self._cell:
                style += cursor
                sign = "┃" if sign in " ·" else sign
            segments.append(Segment(sign, style))
        return Strip(segments)

    def _scale(self) -> str:
        left, right = duration(self._begin) or "0", duration(self._begin + self._span)
        assert self._step is not None
        share = self._span / max(self._step.length_ns, 1)
        middle = "" if share > 0.999 else f"{100 * share:.3g}% of the step"
        gap = max(1, self._room() - len(left) - len(right) - len(middle))
        return " " * _LABEL + left + " " * (gap // 2) + middle + " " * (gap - gap // 2) + right

    def _words(self) -> str:
        found = self._under()
        if found is None:
            return f" {duration(self._time())}: nothing ran here"
        lane, index = found
        spent = duration(float(lane.ends[index] - lane.starts[index]))
        mark = "✖ " if lane.bad[index] else ""
        start = duration(float(lane.starts[index]))
        return f" {mark}{safe(lane.names[index])} #{lane.op_ids[index]}  {spent}  at {start}"
