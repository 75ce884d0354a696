"""What every part of the application stands on: the open trace, its screens, what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textual.app import App
from textual.worker import WorkerFailed

from tracelens.errors import TraceLensError
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.screens.registry import SCREEN_NAMES, make_screen

if TYPE_CHECKING:
    from tracelens.events import Op, Source
    from tracelens_tui.model import TraceModel
    from tracelens_tui.navigation import Navigator
    from tracelens_tui.program import Program
    from tracelens_tui.rows import OpRows

Severity = Literal["information", "warning", "error"]


class Shell(App[int]):
    """One open trace and the screens over it.

    Attributes:
        model: the open trace; ``None`` while none is.
        navigator: moves in it.
        directory: where runs are listed.
        paused: the program that writes the trace stands still and waits for us.
        program: the program that runs beside us, if one does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model: TraceModel | None = None
        self.navigator: Navigator | None = None
        self.directory = Path.cwd()
        self.paused = False
        self.program: Program | None = None

    @property
    def rows(self) -> OpRows:
        """The rows of the op table."""
        assert self.model is not None and self.model.rows is not None
        return self.model.rows

    def set_position(self, position: int, op: Op | None, frame: Source | None = None) -> None:
        """Make an op the current one and tell the screen.

        Args:
            position: its position among all ops.
            op: the op; ``None`` while it is being read.
            frame: the source line to show, if it is not the op's own.
        """
        model = self.model
        if model is None:
            return
        model.position, model.op, model.frame = position, op, frame
        if isinstance(self.screen, TraceScreen):
            self.screen.moved()

    def say(self, text: str, *, severity: Severity = "information") -> None:
        """Tell something in passing."""
        self.notify(text, severity=severity, markup=False, timeout=4)

    def _handle_exception(self, error: Exception) -> None:
        """Tell in place what a background reading could not read; anything else ends the app."""
        cause = error.error if isinstance(error, WorkerFailed) else error
        if isinstance(cause, TraceLensError):
            self.say(str(cause), severity="error")
        else:
            super()._handle_exception(error)

    async def read_story(self) -> None:
        """Read findings, steps and problems, and tell the screen."""
        assert self.model is not None
        try:
            await self.model.read_story()
        except TraceLensError as error:
            self.say(str(error), severity="error")
            return
        self.tell_news()

    def tell_news(self) -> None:
        """The story or the number of ops changed."""
        if isinstance(self.screen, TraceScreen):
            self.screen.news()

    def stop_following(self) -> None:
        """Stay where the cursor is; news still comes in."""
        if self.model is not None and self.model.following:
            self.model.following = False
            self.tell_news()

    def rows_arrived(self) -> None:
        """A page of rows came in."""
        arrived: Callable[[], None] | None = getattr(self.screen, "rows_arrived", None)
        if arrived is not None:
            arrived()

    def row_of_current(self) -> int:
        """Return the row of the current op."""
        assert self.model is not None
        op_id = self.model.op.op_id if self.model.op is not None else -1
        return self.rows.index_of(self.model.position, op_id)

    async def show_screen(self, name: str) -> None:
        """Switch to a screen by its name; it is made when it is first shown."""
        if name != "runs" and self.model is None:
            self.say("open a trace first")
            return
        if not self.is_screen_installed(name):
            screen = make_screen(name)
            self.install_screen(screen, name)
        if len(self.screen_stack) == 1:
            await self.push_screen(name)
        elif self.screen is not self.get_screen(name):
            await self.switch_screen(name)

    async def drop_screens(self) -> None:
        """Forget the screens of the trace that was open."""
        for name in SCREEN_NAMES:
            if name != "runs" and self.is_screen_installed(name):
                screen = self.get_screen(name)
                if self.screen is screen:
                    await self.show_screen("runs")
                self.uninstall_screen(name)
                await screen.remove()

    async def action_screen(self, name: str) -> None:
        """Switch to a screen."""
        await self.show_screen(name)

    def mark_of(self, op: Op) -> str:
        """Return what stands before an op's row: a breakpoint or a bookmark."""
        model = self.model
        if model is None:
            return ""
        if any(each.enabled and each.filter.matches(op) for each in model.breaks):
            return "●"
        return "'" if op.op_id in model.marks else ""
