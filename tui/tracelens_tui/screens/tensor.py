"""One tensor: statistics, histogram, heatmap, values, image; slices, steps side by side, export."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

import numpy as np
from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Static

from tracelens.errors import TraceLensError
from tracelens.events import Stats
from tracelens_tui import health, pictures, tensor_source
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.tensor_source import Target, View
from tracelens_tui.texts import count, number, safe
from tracelens_tui.widgets.heatmap import Heatmap
from tracelens_tui.widgets.histogram import Histogram
from tracelens_tui.widgets.image import Picture
from tracelens_tui.widgets.listing import Listing
from tracelens_tui.widgets.prompt import Prompt
from tracelens_tui.widgets.value_grid import ValueGrid, value_text
from tracelens_tui.widgets.virtual_table import Column, VirtualTable

_MODES = ("heatmap", "values", "image")


class TargetsTable(VirtualTable):
    """The tensors of the current op, then all stored ones."""

    HELP = """The inputs and outputs of the current op, then every tensor whose values were stored.
    `■` has values. `v` goes through heatmap, values, image; `[` takes a slice; `x` and `X` go to
    the next and previous non-finite element, `+` and `-` to the greatest and least; `t` shows the
    step before beside it; `E` writes a .npy file."""

    def __init__(self) -> None:
        columns = (
            Column("", 1, lambda t: "■" if t.row is not None else "·",
                   lambda t: "good" if t.row is not None else "muted"),
            Column("tensor", 12, lambda t: safe(t.label), share=3, keep_end=True),
            Column("", 1, lambda t: health.of_tensor(t.record).glyph if t.record else "",
                   lambda t: health.of_tensor(t.record).tone if t.record else "", rank=2),
            Column("kind", 8, lambda t: t.kind, share=2, rank=3),
            Column("step", 5, lambda t: str(t.step), right=True, rank=1),
        )  # fmt: skip
        super().__init__(columns, id="targets", empty="no tensor")


class TensorScreen(TraceScreen):
    """A list of tensors, and the chosen one in several views."""

    NAME: ClassVar[str] = "tensor"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "cycle", "view", id="tensor.view"),
        Binding("left_square_bracket", "slice", "slice", key_display="[", id="tensor.slice"),
        Binding("x", "bad(1)", "next non-finite", id="tensor.next_bad"),
        Binding("X", "bad(-1)", "previous non-finite", show=False, id="tensor.previous_bad"),
        Binding("plus", "extreme(True)", "greatest", show=False, key_display="+", id="tensor.max"),
        Binding("minus", "extreme(False)", "least", show=False, key_display="-", id="tensor.min"),
        Binding("t", "beside", "step before", id="tensor.beside"),
        Binding("E", "export", "export .npy", id="tensor.export"),
    ]

    def body(self) -> Iterable[Widget]:
        """Lay out the list and the views."""
        with Horizontal(id="tensor-body"):
            yield TargetsTable()
            with Vertical(id="tensor-views"):
                yield Static(id="tensor-facts")
                yield Histogram(id="histogram")
                with Horizontal(id="pictures"):
                    yield Heatmap(id="heatmap")
                    yield Heatmap(id="heatmap-before")
                    yield ValueGrid(id="values")
                    yield Picture(id="image")

    def on_mount(self) -> None:
        """List the tensors."""
        super().on_mount()
        self._mode = "heatmap"
        self._view: View | None = None
        self._index = ""
        self._element: tuple[int, int] = (0, 0)
        self._of_op: int | None = None
        self.query_one(TargetsTable).focus()
        self._show_mode()

    def moved(self) -> None:
        """The current op is another one: list its tensors."""
        self.refresh_status()
        op = self.model.op
        if op is None or op.op_id == self._of_op:
            return
        self._of_op = op.op_id
        self.run_worker(self._list(), group="targets", exclusive=True)

    def news(self) -> None:
        """Only the status line changes."""
        self.refresh_status()

    async def _list(self) -> None:
        model = self.model
        try:
            found = await model.work.ask(
                partial(tensor_source.targets, op=model.op, rank=model.rank)
            )
        except TraceLensError as error:
            self._say_instead(str(error))
            return
        table = self.query_one(TargetsTable)
        table.show(Listing(found), empty=f"no tensor here: {tensor_source.HOW}")
        table.go(tensor_source.default_target(found), tell=False)
        self._chosen()

    @on(VirtualTable.Moved, "#targets")
    def _chosen(self) -> None:
        self._index = ""
        self.remove_class("beside")
        self.run_worker(self._load(), group="tensor", exclusive=True)

    @on(VirtualTable.Chosen, "#targets")
    def _enter_views(self) -> None:
        self.query_one(f"#{self._mode}").focus()

    def on_resize(self) -> None:
        """Draw the heatmap anew for the new size."""
        super().on_resize()
        if self._view is not None:
            self.call_after_refresh(self._reload)

    def _reload(self) -> None:
        self.run_worker(self._load(), group="tensor", exclusive=True)

    async def _load(self) -> None:
        target: Target | None = self.query_one(TargetsTable).current()
        if target is None:
            self._say_instead("")
            return
        if target.row is None:
            self._without_values(target)
            return
        rows, columns = self.query_one("#heatmap", Heatmap).room
        if self.has_class("beside"):
            columns = max(4, columns)
        try:
            view = await self.model.work.ask(
                partial(tensor_source.load, target=target, index=self._index, rows=rows,
                        columns=columns)
            )  # fmt: skip
        except TraceLensError as error:
            self.tracelens.say(str(error), severity="error")
            self._index = ""
            return
        self._view = view
        self._draw(view)

    def _draw(self, view: View) -> None:
        stats = view.picture.stats
        self.remove_class("valueless")
        self.query_one(Histogram).show(view.picture.counts, view.picture.edges)
        self.query_one("#heatmap", Heatmap).show(view.picture.grid, stats.vmin, stats.vmax)
        self.query_one(ValueGrid).show(view.picture.matrix)
        if view.image is not None:
            self.query_one(Picture).show(view.image, stats.vmin, stats.vmax)
        elif self._mode == "image":
            self._mode = "heatmap"
            self._show_mode()
        self._facts()

    def _facts(self) -> None:
        """Write the line of statistics, and the element under the cursor."""
        view = self._view
        if view is None:
            return
        array, stats = view.picture.array, view.picture.stats
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{safe(view.target.label)}{view.index}", "bold")
        text.append(f"  {array.dtype} {list(array.shape)}  step {view.target.step}\n")
        _append_stats(text, stats)
        row, column = self._element
        matrix = view.picture.matrix
        if row < matrix.shape[0] and column < matrix.shape[1]:
            flat = row * matrix.shape[1] + column
            index = [int(at) for at in np.unravel_index(flat, array.shape)] if array.ndim else []
            shown, _ = value_text(matrix[row, column])
            text.append(f"\nelement {index} = ")
            text.append(shown, "bold")
        self.query_one("#tensor-facts", Static).update(text)

    def _without_values(self, target: Target) -> None:
        self._view = None
        self.add_class("valueless")
        text = Text()
        text.append(f"{safe(target.label)}", "bold")
        text.append(f"  {target.kind}  step {target.step}\n")
        stats = tensor_source.stats_of(target)
        if stats is not None:
            _append_stats(text, stats)
        else:
            text.append("not measured")
        record = target.record
        if record is not None and record.first_bad and record.shape is not None:
            places = [
                [int(at) for at in np.unravel_index(flat, record.shape)]
                for flat in record.first_bad
                if record.shape and flat < np.prod(record.shape)
            ]
            text.append(f"\nfirst non-finite at {', '.join(map(str, places))}")
        text.append("\n\nIts values were not stored: ", "bold")
        text.append(tensor_source.HOW)
        self.query_one("#tensor-facts", Static).update(text)

    def _say_instead(self, words: str) -> None:
        self._view = None
        self.add_class("valueless")
        self.query_one("#tensor-facts", Static).update(Text(words))

    def action_cycle(self) -> None:
        """Show the next view."""
        modes = [m for m in _MODES if m != "image" or (self._view and self._view.image is not None)]
        self._mode = modes[(modes.index(self._mode) + 1) % len(modes)] if modes else "heatmap"
        self._show_mode()
        if self.focused is not self.query_one(TargetsTable):
            self.query_one(f"#{self._mode}").focus()

    def _show_mode(self) -> None:
        for mode in _MODES:
            self.query_one(f"#{mode}").display = mode == self._mode

    async def action_slice(self) -> None:
        """Ask for a slice."""
        await self.query_one(Prompt).open("[", text=self._index or "[")

    async def on_prompt_entered(self, event: Prompt.Entered) -> None:
        """Take a slice; every other line is the app's."""
        if event.kind != "[":
            return
        event.stop()
        text = event.text if event.text.endswith("]") or not event.text else event.text + "]"
        self._index = "" if text in ("", "[]", "[:]") else text
        self._reload()

    def action_bad(self, direction: int) -> None:
        """Go to the next or previous non-finite element."""
        self._seek(partial(pictures.find_bad, direction=direction), "no further non-finite element")

    def action_extreme(self, largest: bool) -> None:
        """Go to the greatest or least finite element."""
        self._seek(lambda array, after: pictures.find_extreme(array, largest), "no finite element")

    def _seek(self, look, nothing: str) -> None:  # type: ignore[no-untyped-def]
        view = self._view
        if view is None:
            self.tracelens.say("its values were not stored", severity="warning")
            return
        width = max(view.picture.matrix.shape[1], 1)
        here = self._element[0] * width + self._element[1]
        first = self._element == (0, 0) and not getattr(self, "_sought", False)
        self._sought = True

        async def run() -> None:
            after = -1 if first else here
            found = await self.model.work.ask(lambda reader: look(view.picture.array, after=after))
            if found is None:
                self.tracelens.say(nothing)
            else:
                self._go_to(found // width, found % width)

        self.run_worker(run(), group="seek", exclusive=True)

    def _go_to(self, row: int, column: int) -> None:
        self._element = (row, column)
        self.query_one("#heatmap", Heatmap).go_to(row, column)
        self.query_one(ValueGrid).go_to(row, column)
        self._facts()

    @on(Heatmap.Moved)
    def _cell_moved(self, event: Heatmap.Moved) -> None:
        self._element = (event.row, event.column)
        self.query_one(ValueGrid).go_to(event.row, event.column)
        self._facts()

    @on(ValueGrid.Moved)
    def _value_moved(self, event: ValueGrid.Moved) -> None:
        self._element = (event.row, event.column)
        self.query_one("#heatmap", Heatmap).go_to(event.row, event.column)
        self._facts()

    def action_beside(self) -> None:
        """Show the same tensor of the step before at its side, or hide it."""
        if self.has_class("beside"):
            self.remove_class("beside")
            self.call_after_refresh(self._reload)
        elif self._view is not None:
            self.run_worker(self._load_before(self._view), group="beside", exclusive=True)
        else:
            self.tracelens.say("its values were not stored", severity="warning")

    async def _load_before(self, view: View) -> None:
        rank, index = self.model.rank, self._index
        before = await self.model.work.ask(
            partial(tensor_source.step_before, target=view.target, rank=rank)
        )
        if before is None:
            self.tracelens.say("it was not stored in an earlier step", severity="warning")
            return
        self._mode = "heatmap"
        self._show_mode()
        self.add_class("beside")
        self.call_after_refresh(self._draw_beside, view, before, index)

    async def _draw_beside(self, view: View, before: Target, index: str) -> None:
        rows, columns = self.query_one("#heatmap", Heatmap).room
        load = partial(tensor_source.load, index=index, rows=rows, columns=columns)
        try:
            now = await self.model.work.ask(partial(load, target=view.target))
            then = await self.model.work.ask(partial(load, target=before))
        except TraceLensError as error:
            self.tracelens.say(str(error), severity="error")
            return
        # One scale for both, or equal colours would not mean equal values.
        lows = [s.vmin for s in (now.picture.stats, then.picture.stats) if s.vmin is not None]
        highs = [s.vmax for s in (now.picture.stats, then.picture.stats) if s.vmax is not None]
        low, high = min(lows, default=0.0), max(highs, default=0.0)
        left, right = (
            self.query_one("#heatmap", Heatmap),
            self.query_one("#heatmap-before", Heatmap),
        )
        left.border_title, right.border_title = f"step {view.target.step}", f"step {before.step}"
        left.show(now.picture.grid, low, high)
        right.show(then.picture.grid, low, high)

    async def action_export(self) -> None:
        """Ask where to write the values."""
        view = self._view
        if view is None:
            self.tracelens.say(f"its values were not stored: {tensor_source.HOW}")
            return
        name = safe(view.target.label).replace("/", ".").replace(" ", "")
        target = view.target.command_name + view.index.replace(" ", "")
        await self.tracelens.action_prompt(
            ":", f"export {target} {name}-step{view.target.step}.npy"
        )


def _append_stats(text: Text, stats: Stats) -> None:
    if stats.nonfinite:
        words = []
        for word, n in (("NaN", stats.nan), ("+Inf", stats.posinf), ("-Inf", stats.neginf)):
            if n:
                words.append(f"{count(n)} {word}")
        text.append(f"✖ {', '.join(words)} of {count(stats.numel)}  ", "bold")
    else:
        text.append(f"✓ {count(stats.numel)} finite  ")
    if stats.vmin is not None:
        text.append(f"min {number(stats.vmin)}  max {number(stats.vmax)}  ")
    if stats.mean is not None:
        text.append(f"mean {number(stats.mean)}  std {number(stats.std)}  ")
    if stats.l2 is not None:
        text.append(f"l2 {number(stats.l2)}  ")
    if stats.zero:
        text.append(f"{100 * stats.zero / max(stats.numel, 1):.0f}% zero")
