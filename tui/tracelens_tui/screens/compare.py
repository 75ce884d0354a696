"""Two traces side by side, aligned by step and order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget

from tracelens.errors import TraceLensError
from tracelens.events import Op
from tracelens_tui import health
from tracelens_tui.pairs import Pair, PairRows, blocks_of, steps_of
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.texts import fit, place, safe, shape, values
from tracelens_tui.widgets.prompt import Prompt
from tracelens_tui.widgets.virtual_table import Column, VirtualTable
from tracelens_tui.worker import ReaderThread

_TONES = {"=": "muted", "≈": "muted", "·": "muted", "≠": "error"}


class CompareTable(VirtualTable):
    """One row a pair of ops."""

    HELP = """Ops of two traces, paired by step and by order in it. `=` equal statistics, `≈` equal
    to 1 in 10,000, `≠` different values, `≁` another op, `‹` and `›` in one trace only. `x` and
    `X` go to the next and previous difference, `o` opens another trace beside this one, **enter**
    goes to the op."""

    def __init__(self) -> None:
        columns = (
            Column("step", 5, lambda p: str(_either(p).step), right=True, rank=2),
            Column("", 1, lambda p: _glyph(p.left), lambda p: _tone(p.left)),
            Column("this trace", 14, lambda p: _name(p.left), share=2),
            Column("values", 12, lambda p: _values(p.left), share=3, rank=1),
            Column("", 1, lambda p: p.sign, lambda p: _TONES.get(p.sign, "warning")),
            Column("", 1, lambda p: _glyph(p.right), lambda p: _tone(p.right)),
            Column("the other", 14, lambda p: _name(p.right), share=2),
            Column("values", 12, lambda p: _values(p.right), share=3, rank=1),
            Column("source", 12, lambda p: place(_either(p)), share=1, rank=3, keep_end=True),
        )  # fmt: skip
        super().__init__(columns, id="pairs", empty="press o and name the trace to compare with")


class CompareScreen(TraceScreen):
    """Pairs of ops; asks for the other trace first."""

    NAME: ClassVar[str] = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "difference(1)", "next difference", id="compare.next"),
        Binding("X", "difference(-1)", "previous difference", show=False, id="compare.previous"),
        Binding("o", "other", "other trace", id="compare.other"),
    ]

    def body(self) -> Iterable[Widget]:
        """Lay out the table."""
        yield CompareTable()

    def on_mount(self) -> None:
        """Ask for the other trace."""
        super().on_mount()
        self._rows: PairRows | None = None
        self._other: ReaderThread | None = None
        table = self.query_one(CompareTable)
        table.add_class("pane")
        table.border_title = "compare"
        table.focus()

    def on_unmount(self) -> None:
        """Close the other trace."""
        if self._other is not None:
            self._other.close()

    def moved(self) -> None:
        """Follow the current op."""
        self.refresh_status()
        if self._rows is not None:
            row = self._rows.row_of(self.model.position)
            self.query_one(CompareTable).go(row, tell=False, centre=True)

    def news(self) -> None:
        """Only the status line changes."""
        self.refresh_status()

    async def action_other(self) -> None:
        """Ask for the other trace; the newest run beside this one is offered."""
        from tracelens_tui import runs

        here = self.model.path
        near = [str(run.path) for run in runs.find(self.tracelens.directory) if run.path != here]
        await self.query_one(Prompt).open("o", text=near[0] if near else "", words=tuple(near))

    async def on_prompt_entered(self, event: Prompt.Entered) -> None:
        """Open the other trace; every other line is the app's."""
        if event.kind == "o":
            event.stop()
            if event.text:
                self.run_worker(self.compare(Path(event.text)), group="compare", exclusive=True)

    async def compare(self, path: Path) -> None:
        """Show another trace beside this one."""
        model = self.model
        other = ReaderThread(str(path), "tracelens-other")
        try:
            left = await model.work.ask(lambda reader: steps_of(reader, model.rank))
            right = await other.ask(lambda reader: steps_of(reader, (reader.ranks() or [0])[0]))
        except TraceLensError as error:
            other.close()
            self.tracelens.say(str(error), severity="error")
            return
        if self._other is not None:
            self._other.close()
        self._other = other
        table = self.query_one(CompareTable)
        self._rows = PairRows(
            model.pages, other, blocks_of(left, right), self.app.call_later, table.resized
        )
        table.border_title = Text(
            f"{fit(safe(model.path.name), 40)}  |  {fit(safe(path.name), 40)}   = ≈ ≠ ≁ ‹ ›"
        )
        table.show(self._rows, empty="neither trace holds an op")
        self.moved()

    async def action_difference(self, direction: int) -> None:
        """Go to the next or previous difference."""
        if self._rows is None:
            await self.action_other()
            return
        table = self.query_one(CompareTable)
        try:
            row = await self._rows.next_difference(table.cursor, direction)
        except TraceLensError as error:
            self.tracelens.say(str(error), severity="error")
            return
        if row is None:
            self.tracelens.say("no further difference within 20,000 ops")
        else:
            table.go(row, centre=True)

    @on(VirtualTable.Chosen, "#pairs")
    async def _go(self) -> None:
        pair: Any = self.query_one(CompareTable).current()
        if isinstance(pair, Pair) and pair.left is not None:
            await self.tracelens.go_to_op(pair.left.op_id)
            await self.tracelens.show_screen("ops")


def _either(pair: Pair) -> Op:
    op = pair.left or pair.right
    assert op is not None
    return op


def _glyph(op: Op | None) -> str:
    return health.of_op(op).glyph if op is not None else ""


def _tone(op: Op | None) -> str:
    return health.of_op(op).tone if op is not None else ""


def _name(op: Op | None) -> str:
    return safe(op.name) if op is not None else "—"


def _values(op: Op | None) -> str:
    if op is None or not op.outputs:
        return ""
    first = op.outputs[0]
    return values(first.stats) or shape(first.shape)
