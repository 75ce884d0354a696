"""The model as a tree: where the time goes, and which module's values or gradients went bad."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget

from tracelens.errors import TraceLensError
from tracelens_tui import module_tree
from tracelens_tui.module_tree import Module
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.texts import count, duration, number, safe
from tracelens_tui.widgets.listing import Listing
from tracelens_tui.widgets.virtual_table import Column, VirtualTable

_BAR = 12


class ModulesTable(VirtualTable):
    """Modules, their children indented below them."""

    HELP = """The modules of the model, of the current step or (`a`) of all steps. `fwd` is the
    worst activation inside, `bwd` the worst gradient: a parent shows its worst child. **Enter**
    opens and closes, `o` shows the module's ops, `x` opens the way to the worst module."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "fold(True)", "open", show=False, id="modules.open"),
        Binding("left,h", "fold(False)", "close", show=False, id="modules.close"),
    ]

    def __init__(self) -> None:
        self.total_ns = 0
        columns = (
            Column("module", 24, _name, lambda m: "accent" if m.depth == 0 else "", share=3),
            Column("fwd", 3, lambda m: f" {m.forward.glyph}", lambda m: m.forward.tone),
            Column("bwd", 3, lambda m: f" {m.backward.glyph}", lambda m: m.backward.tone),
            Column("ops", 9, lambda m: count(m.n_ops), right=True, rank=2),
            Column("time", 8, lambda m: duration(m.duration_ns or None), right=True),
            Column("share", _BAR + 5, self._share, rank=1),
            Column("|x|max", 9, lambda m: number(m.absmax) if m.absmax is not None else "",
                   right=True, rank=3),
        )  # fmt: skip
        super().__init__(columns, id="modules", empty="reading …")

    def _share(self, module: Module) -> str:
        share = module.duration_ns / self.total_ns if self.total_ns else 0.0
        eighths = round(share * _BAR * 8)
        bar = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
        return f"{bar:<{_BAR}} {100 * share:3.0f}%" if module.duration_ns else ""

    def action_fold(self, open_it: bool) -> None:
        """Open or close the module under the cursor."""
        screen = self.screen
        assert isinstance(screen, ModulesScreen)
        screen.fold(open_it)


class ModulesScreen(TraceScreen):
    """The tree of one step, or of the whole trace."""

    NAME: ClassVar[str] = "modules"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "all_steps", "all steps", id="modules.all"),
        Binding("o", "ops", "its ops", id="modules.ops"),
        Binding("x", "worst", "worst", id="modules.worst"),
    ]

    def body(self) -> Iterable[Widget]:
        """Lay out the table."""
        yield ModulesTable()

    def on_mount(self) -> None:
        """Read the current step."""
        super().on_mount()
        self._root: Module | None = None
        self._all = False
        self._step: int | None = None
        self.query_one(ModulesTable).focus()
        self.query_one(ModulesTable).add_class("pane")

    def moved(self) -> None:
        """Another step: read it."""
        self.refresh_status()
        op = self.model.op
        step = op.step if op is not None and not self._all else None
        if self._root is None or step != self._step:
            self._step = step
            self.run_worker(self._read(step), group="modules", exclusive=True)

    def news(self) -> None:
        """Only the status line changes."""
        self.refresh_status()

    async def _read(self, step: int | None) -> None:
        table = self.query_one(ModulesTable)
        table.border_title = "all steps" if step is None else f"step {step}"
        expanded = {m.path for m in module_tree.visible(self._root) if m.expanded} if self._root \
            else None  # fmt: skip
        try:
            root = await self.model.work.ask(
                partial(module_tree.read, step=step, rank=self.model.rank)
            )
        except TraceLensError as error:
            self.tracelens.say(str(error), severity="error")
            return
        self._root = root
        table.total_ns = root.duration_ns
        if expanded is None:
            self.action_worst()
        else:
            _expand_again(root, expanded)
            table.show(Listing(module_tree.visible(root)), empty="no op was recorded in this step")

    def fold(self, open_it: bool) -> None:
        """Open or close the module under the cursor; closing a closed one goes to its parent."""
        table = self.query_one(ModulesTable)
        module: Module | None = table.current()
        if module is None or self._root is None:
            return
        if not open_it and not (module.expanded and module.children) and module.depth:
            above = module_tree.visible(self._root)[: table.cursor]
            parent = max((at for at, m in enumerate(above) if m.depth < module.depth), default=0)
            table.go(parent)
            return
        module.expanded = open_it
        table.show(Listing(module_tree.visible(self._root)))

    @on(VirtualTable.Chosen, "#modules")
    def _toggle(self) -> None:
        module = self.query_one(ModulesTable).current()
        if module is not None:
            self.fold(not module.expanded)

    def action_all_steps(self) -> None:
        """Sum up all steps, or only the current one."""
        self._all = not self._all
        self._step = -2
        self.moved()

    def action_worst(self) -> None:
        """Open the way to the module whose values went bad first."""
        if self._root is None:
            return
        worst = module_tree.expand_to_worst(self._root)
        table = self.query_one(ModulesTable)
        rows = module_tree.visible(self._root)
        table.show(Listing(rows))
        table.go(rows.index(worst), centre=True)

    async def action_ops(self) -> None:
        """Show the ops of the module under the cursor."""
        module: Module | None = self.query_one(ModulesTable).current()
        if module is None or not module.path:
            self.tracelens.say("choose a module")
            return
        await self.tracelens.go_to_op(module.first_op)
        await self.tracelens.show_screen("ops")
        await self.tracelens.filter_ops(f"module:{module.path}.* or module:{module.path}")


def _name(module: Module) -> str:
    sign = ("▾" if module.expanded else "▸") if module.children else " "
    return f"{'  ' * module.depth}{sign} {safe(module.name)}"


def _expand_again(module: Module, paths: set[str]) -> None:
    module.expanded = module.path in paths or module.depth == 0
    for child in module.children.values():
        _expand_again(child, paths)
