"""Curves over all steps, and below them what ran when in the current step."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from textual import on
from textual.widget import Widget

from tracelens.errors import TraceLensError
from tracelens_tui import curves, lanes
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.widgets.curves_pane import CurvesPane
from tracelens_tui.widgets.lanes_pane import LanesPane


class TimelineScreen(TraceScreen):
    """Curves above, lanes below."""

    NAME: ClassVar[str] = "timeline"

    def body(self) -> Iterable[Widget]:
        """Lay out the two panes."""
        top = CurvesPane(id="curves")
        top.add_class("pane")
        top.border_title = "steps"
        below = LanesPane(id="lanes")
        below.add_class("pane")
        yield top
        yield below

    def on_mount(self) -> None:
        """Show what is known."""
        super().on_mount()
        self._lanes_of: int | None = None
        self.query_one(CurvesPane).focus()
        self.news()

    def news(self) -> None:
        """Steps were added."""
        self.refresh_status()
        found = curves.of_steps(self.model.story.steps)
        op = self.model.op
        pane = self.query_one(CurvesPane)
        pane.show(found, op.step if op is not None else None)
        n = len(self.model.story.steps)
        pane.border_title = f"{n} steps" if n != 1 else "1 step"

    def moved(self) -> None:
        """Another op: another step may be current."""
        self.news()
        op = self.model.op
        if op is not None:
            self.run_worker(self._read(op.step, op.op_id), group="lanes", exclusive=True)

    async def _read(self, step: int, op_id: int) -> None:
        pane = self.query_one(LanesPane)
        if step != self._lanes_of:
            try:
                self._step = await self.model.work.ask(
                    partial(lanes.read, step=step, rank=self.model.rank)
                )
            except TraceLensError as error:
                self.tracelens.say(str(error), severity="error")
                return
            self._lanes_of = step
        note = "" if self._step.timed else "  (no durations: recorded at guard level)"
        pane.border_title = f"step {step}{note}"
        pane.show(self._step, op_id)

    @on(CurvesPane.Chosen)
    async def _step_chosen(self, event: CurvesPane.Chosen) -> None:
        await self.tracelens.go(lambda cursor: cursor.goto(step=event.step))

    @on(LanesPane.Chosen)
    async def _op_chosen(self, event: LanesPane.Chosen) -> None:
        await self.tracelens.go_to_op(event.op_id)
        await self.tracelens.show_screen("ops")
