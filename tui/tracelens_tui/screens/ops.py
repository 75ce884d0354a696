"""The stepper: every op, the source line, where it stands, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical
from textual.events import DescendantFocus
from textual.widget import Widget

from tracelens.errors import TraceLensError
from tracelens.events import Op
from tracelens_tui import sources
from tracelens_tui.columns import op_columns
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.widgets.chain import ChainTable, WhyPane
from tracelens_tui.widgets.source_pane import SourcePane
from tracelens_tui.widgets.tensors_pane import TensorsPane, ports_of
from tracelens_tui.widgets.virtual_table import VirtualTable
from tracelens_tui.widgets.where_pane import WherePane

_SETTLE_S = 0.06
"""What costs a query is asked once the cursor has rested this long."""


class OpsTable(VirtualTable):
    """Every op of the trace, or those that pass the filter."""

    HELP = """Every recorded op in the order it began. The first column is its health:
    `✖` NaN, `∞` Inf, `▲` close to overflow, `0` all zero, `✓` finite, `~` a view,
    `░` uninitialised, `·` not measured. `●` before a row is a breakpoint, `'` a bookmark."""

    def __init__(self) -> None:
        super().__init__(op_columns(), id="ops", empty="no op was recorded")


class OpsScreen(TraceScreen):
    """Ops, source, where, inputs and outputs."""

    NAME: ClassVar[str] = "ops"

    def body(self) -> Iterable[Widget]:
        """Lay out the table above, the panes below."""
        yield OpsTable()
        with Horizontal(id="below"):
            yield SourcePane(id="source")
            with Vertical(id="right"):
                yield TensorsPane(id="tensors")
                yield WherePane(id="where")
                yield WhyPane(id="why")

    def on_mount(self) -> None:
        """Show the rows that are already read."""
        super().on_mount()
        table = self.table
        table.show(self.tracelens.rows)
        table.marked = self.tracelens.mark_of
        table.cursor = self.model.position
        table.focus()
        self.call_after_refresh(lambda: table.go(self.model.position, tell=False, centre=True))
        self.moved()

    @property
    def table(self) -> OpsTable:
        """The op table."""
        return self.query_one(OpsTable)

    def rows_arrived(self) -> None:
        """A page of rows came in."""
        self.table.resized()
        op, current = self.table.current(), self.model.op
        if op is not None and (current is None or not self.tracelens.rows.holds(current.op_id)):
            self.tracelens.row_chosen(self.table.cursor)

    def news(self) -> None:
        """Counts may have changed."""
        self.refresh_status()
        self.table.resized()

    def moved(self) -> None:
        """Show the current op at once, and what must be asked for when the cursor rests."""
        model = self.model
        self.table.resized()
        self.table.go(self.tracelens.row_of_current(), tell=False)
        self.refresh_status()
        op = model.op
        if op is not None:
            self.query_one(SourcePane).show(*self._source(op))
            self.query_one(TensorsPane).show_ports(ports_of(op))
            self.query_one(WherePane).show(op)
        self.run_worker(self._settled(op), group="settle", exclusive=True)

    def _source(self, op: Op) -> tuple[str, sources.SourceFile, int]:
        """Return the file and line to show: of the frame that was chosen, or the op's own."""
        frame = self.model.frame or op.source
        if frame is None:
            return "", sources.SourceFile(), 0
        return frame.file, sources.read(frame.file, self.model.bases), frame.line

    async def _settled(self, op: Op | None) -> None:
        """Read what takes a query: the other ends of the tensors, the line annotations."""
        from asyncio import sleep

        await sleep(_SETTLE_S)
        if op is None:
            return
        model = self.model
        try:
            ports = await model.ports(op)
            around = await model.parents(op)
            if model.op is op:
                self.query_one(TensorsPane).update_ports(ports)
                self.query_one(WherePane).show(op, around)
            if op.source is not None and (op.source.file, op.step) != self._annotated:
                self._annotated = op.source.file, op.step
                notes = await model.annotations(op.source.file, op.step)
                self.query_one(SourcePane).annotate(notes)
        except TraceLensError as error:
            self.tracelens.say(str(error), severity="error")

    _annotated: tuple[str, int] = ("", -1)

    def show_why(self, finding: Mapping[str, Any]) -> None:
        """Show the chain of a finding, ready to be walked."""
        self.add_class("show-why")
        self.query_one(WhyPane).show(finding)
        self.query_one(ChainTable).focus()

    def hide_why(self) -> bool:
        """Show again where the op stands; returns whether the chain was open."""
        was_open = self.has_class("show-why")
        self.remove_class("show-why")
        if was_open:
            self.table.focus()
        return was_open

    @on(VirtualTable.Moved, "#chain")
    async def _link_walked(self, event: VirtualTable.Moved) -> None:
        link = self.query_one(ChainTable).links[event.index]
        if link.op_id is not None:
            await self.tracelens.go_to_op(link.op_id)

    @on(VirtualTable.Chosen, "#chain")
    async def _link_chosen(self, event: VirtualTable.Chosen) -> None:
        link = self.query_one(ChainTable).links[event.index]
        if link.op_id is not None:
            await self.tracelens.go_to_op(link.op_id)
            self.table.focus()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """On a narrow terminal the pane that has the focus is the one that shows."""
        name = event.widget.id or ""
        if name in ("source", "tensors", "where", "ops"):
            for pane in ("tensors", "where"):
                if name != "ops":
                    self.set_class(name == pane, f"show-{pane}")

    @on(VirtualTable.Moved, "#ops")
    def _row_moved(self, event: VirtualTable.Moved) -> None:
        self.tracelens.row_chosen(event.index)

    @on(VirtualTable.Chosen, "#ops")
    async def _row_chosen(self) -> None:
        await self.tracelens.action_command("inputs")

    @on(VirtualTable.Chosen, "#tensors")
    async def _port_chosen(self, event: VirtualTable.Chosen) -> None:
        port = self.query_one(TensorsPane).ports[event.index]
        if port.other is not None:
            await self.tracelens.go_to_op(port.other.op_id)
        else:
            self.tracelens.say(
                "no recorded op wrote it" if port.is_input else "no recorded op read it"
            )
