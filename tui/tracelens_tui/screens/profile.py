"""Where the time and the memory went: one analysis at a time, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Static

from tracelens.errors import TraceLensError
from tracelens_tui import profile_views
from tracelens_tui.profile_views import GROUPINGS, VIEWS, Head, Line, View
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.widgets.listing import Listing
from tracelens_tui.widgets.virtual_table import Column, VirtualTable

_NAMES = tuple(VIEWS)


class ProfileTable(VirtualTable):
    """The rows of the view that is shown."""

    HELP = """Where the time went. **Left** and **right** go through the views: the split of a step,
    steps, ops, kernels, what the device waited for, memory, communication, findings. `v` groups ops
    and kernels by name, shape, module or line. **Enter** goes to the ops of a row, or to its
    step."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "view(1)", "next view", show=False, id="profile.next"),
        Binding("left,h", "view(-1)", "previous view", show=False, id="profile.previous"),
        Binding("v", "group", "group by", id="profile.group"),
    ]

    def __init__(self) -> None:
        super().__init__((), id="profile", empty="reading …")

    def show_view(self, view: View) -> None:
        """Show a view's rows under its own columns."""
        self._columns = tuple(_column(at, head) for at, head in enumerate(view.heads))
        self._layout = []
        self.cursor = 0
        self.scroll_to(y=0, animate=False, force=True, immediate=True)
        self.show(Listing(view.lines), empty=view.empty)

    def action_view(self, steps: int) -> None:
        """Go to another view."""
        screen = self.screen
        assert isinstance(screen, ProfileScreen)
        screen.turn(steps)

    def action_group(self) -> None:
        """Group by something else."""
        screen = self.screen
        assert isinstance(screen, ProfileScreen)
        screen.regroup()


class ProfileScreen(TraceScreen):
    """Tabs of views, a line that sums up, the table, and what more a row has to say."""

    NAME: ClassVar[str] = "profile"

    def body(self) -> Iterable[Widget]:
        """Lay out the lines and the table."""
        yield Static(id="profile-views")
        table = ProfileTable()
        table.add_class("pane")
        yield table
        yield Static(id="profile-detail")

    def on_mount(self) -> None:
        """Read the first view."""
        super().on_mount()
        self._view = 0
        self._by = 0
        self.query_one(ProfileTable).focus()
        self._read()

    def turn(self, steps: int) -> None:
        """Go to the next view, or the one before."""
        self._view = (self._view + steps) % len(_NAMES)
        self._read()

    def regroup(self) -> None:
        """Group ops and kernels by something else."""
        if _NAMES[self._view] in ("ops", "kernels"):
            self._by = (self._by + 1) % len(GROUPINGS)
            self._read()
        else:
            self.tracelens.say("only ops and kernels are grouped")

    def _read(self) -> None:
        tabs = Text(no_wrap=True, overflow="ellipsis")
        for at, name in enumerate(_NAMES):
            tabs.append(f" {name} ", "reverse" if at == self._view else "")
        self.query_one("#profile-views", Static).update(tabs)
        name, by = _NAMES[self._view], GROUPINGS[self._by]
        self.run_worker(self._show(name, by), group="profile", exclusive=True)

    async def _show(self, name: str, by: str) -> None:
        table = self.query_one(ProfileTable)
        try:
            view = await self.model.work.ask(
                partial(profile_views.read, name=name, by=by, rank=self.model.rank)
            )
        except TraceLensError as error:
            self.tracelens.say(str(error), severity="error")
            return
        table.border_title = Text(view.summary or name)  # a plain string would be read as markup
        table.show_view(view)
        self._tell()

    @on(VirtualTable.Moved, "#profile")
    def _tell(self) -> None:
        line: Line | None = self.query_one(ProfileTable).current()
        self.query_one("#profile-detail", Static).update(Text(line.detail if line else ""))

    @on(VirtualTable.Chosen, "#profile")
    async def _go(self) -> None:
        line: Line | None = self.query_one(ProfileTable).current()
        if line is None:
            return
        step = line.step
        if step is not None and step >= 0:
            await self.tracelens.go(lambda cursor: cursor.goto(step=step))
            await self.tracelens.show_screen("timeline")
        elif line.filter:
            await self.tracelens.show_screen("ops")
            await self.tracelens.filter_ops(line.filter)
        else:
            self.tracelens.say("this row stands for no ops")


def _column(at: int, head: Head) -> Column:
    return Column(
        head.title,
        head.width,
        lambda line: line.cells[at],
        (lambda line: line.tone) if at == 0 else None,
        right=head.right,
        share=head.share,
        rank=head.rank,
        keep_end=head.title == "line",
    )
