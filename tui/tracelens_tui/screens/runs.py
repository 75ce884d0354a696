"""The runs of a directory: what there is to open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget

from tracelens_tui import runs
from tracelens_tui.runs import Run
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.texts import count, fit, safe, size
from tracelens_tui.widgets.listing import Listing
from tracelens_tui.widgets.virtual_table import Column, VirtualTable

_STATES = {"live": "● live", "closed": "■ closed", "unreadable": "! unreadable", "": "…"}
_STATE_TONES = {"live": "good", "closed": "", "unreadable": "error", "": "muted"}


class RunsTable(VirtualTable):
    """One line a trace, the newest first."""

    HELP = """The traces below this directory, the newest first. `●` is still being written, `✝`
    was killed (its records are readable), `!` cannot be read. **Enter** opens one, **r** looks
    again."""

    def __init__(self) -> None:
        columns = (
            Column("run", 20, lambda run: safe(run.path.name), share=3, keep_end=True),
            Column("state", 12, lambda run: _STATES.get(run.state, f"✝ {run.state}"),
                   lambda run: _STATE_TONES.get(run.state, "warning")),
            Column("verdict", 13, lambda run: safe(run.verdict),
                   lambda run: "error" if run.findings or run.problem else "good", share=2),
            Column("steps", 8, lambda run: count(run.steps) if run.state else "", right=True),
            Column("ranks", 5, lambda run: str(run.ranks or ""), right=True, rank=3),
            Column("size", 9, lambda run: size(run.size_bytes) if run.size_bytes else "",
                   right=True, rank=1),
            Column("framework", 10, lambda run: safe(run.framework), rank=4),
            Column("changed", 8, lambda run: runs.age(run.changed_unix_s), right=True, rank=2),
        )  # fmt: skip
        super().__init__(columns, id="runs", empty="no *.tltrace here")


class RunsScreen(TraceScreen):
    """Lists and opens runs."""

    NAME: ClassVar[str] = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "look_again", "look again", id="runs.reload"),
    ]

    def body(self) -> Iterable[Widget]:
        """Lay out the table."""
        yield RunsTable()

    def on_mount(self) -> None:
        """List what is there."""
        super().on_mount()
        table = self.query_one(RunsTable)
        table.border_title = Text(fit(str(self.tracelens.directory), 70, keep_end=True))
        table.add_class("pane")
        table.focus()
        self.action_look_again()

    def moved(self) -> None:
        """Say where we are looking."""
        if self.tracelens.model is None:
            self.refresh_status(f"runs of {fit(str(self.tracelens.directory), 60, keep_end=True)}")

    def action_look_again(self) -> None:
        """List anew."""
        self.run_worker(self._list(), exclusive=True, group="runs")

    async def _list(self) -> None:
        found = await asyncio.to_thread(runs.find, self.tracelens.directory)
        table = self.query_one(RunsTable)
        table.show(Listing(found), empty="nothing was recorded here: tracelens run script.py")
        for at, run in enumerate(found):
            found[at] = await asyncio.to_thread(partial(runs.look_into, run))
            table.refresh()

    @on(VirtualTable.Chosen, "#runs")
    async def _open(self) -> None:
        run: Run | None = self.query_one(RunsTable).current()
        if run is None:
            return
        if run.problem:
            self.tracelens.say(run.problem, severity="error")
        elif self.tracelens.model is not None and self.tracelens.model.path == run.path:
            await self.tracelens.show_screen("ops")
        else:
            self.tracelens.open_later(run.path)
