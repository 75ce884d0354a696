"""The application: one open trace, the screens over it, the keys that every screen has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import BindingType
from textual.worker import WorkerFailed

from tracelens.errors import TraceLensError
from tracelens.events import Op, Source
from tracelens_tui import keymap
from tracelens_tui.actions import Actions
from tracelens_tui.beside import Beside
from tracelens_tui.live import Live
from tracelens_tui.model import TraceModel, open_at
from tracelens_tui.navigation import Navigator
from tracelens_tui.rows import OpRows
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.screens.registry import SCREEN_NAMES, make_screen
from tracelens_tui.themes import DARK, THEMES, extra_variables
from tracelens_tui.worker import ReaderThread

if TYPE_CHECKING:
    from tracelens.control import Stopped
    from tracelens_tui.model import Opening
    from tracelens_tui.program import Program


def _palette() -> type:
    """Return the palette's provider, imported when the palette is first opened."""
    from tracelens_tui.palette import CommandPalette

    return CommandPalette


class TraceLensApp(Actions, Live, Beside, App[int]):
    """Shows one trace, step by step, or the runs of a directory."""

    TITLE = "tracelens"
    CSS_PATH = "tracelens.tcss"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[Callable[[], type]]] = {_palette}
    BINDINGS: ClassVar[list[BindingType]] = keymap.bindings()

    def __init__(
        self,
        path: Path | None = None,
        *,
        directory: Path | None = None,
        at: int | None = None,
        pages: ReaderThread | None = None,
        opening: Future[Opening] | None = None,
        paused: bool = False,
        command: Sequence[str] = (),
    ) -> None:
        """Prepare; nothing is read from here.

        Args:
            path: the trace to open; the runs of ``directory`` are listed if ``None``.
            directory: where runs are looked for; the trace's directory by default.
            at: the id of the op to start at.
            pages: a reader that was started while Textual was being imported.
            opening: what that reader was asked first.
            paused: the program that writes the trace stands still and waits for us.
            command: a program to run beside us, which writes the trace.
        """
        super().__init__()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = DARK.name
        self.directory = directory or (path.parent if path else Path.cwd())
        self.model: TraceModel | None = None
        self.navigator: Navigator | None = None
        self.paused = paused
        self.program: Program | None = None
        self._command = command
        self._path = path
        self._at = at
        self._pages = pages
        self._opening = opening

    @property
    def rows(self) -> OpRows:
        """The rows of the op table."""
        assert self.model is not None and self.model.rows is not None
        return self.model.rows

    def get_css_variables(self) -> dict[str, str]:
        """Return the theme's colours and ours."""
        known = super().get_css_variables()
        return {**known, **extra_variables(self.current_theme, known)}

    async def on_mount(self) -> None:
        """Open what was asked for."""
        self.set_keymap(keymap.user_keymap())
        if self._path is None:
            await self.show_screen("runs")
        elif self._command:
            from tracelens_tui.program import Program

            self.program = Program(self._command, self._path, self._tell_stop)
            await self.show_screen("runs")
            self.run_worker(self.watch_program(self._path, self.program), group="program")
        else:
            await self.open(self._path, at=self._at, pages=self._pages, opening=self._opening)

    def _tell_stop(self, stopped: Stopped) -> None:
        self.call_later(self.program_stopped, stopped)

    async def open(
        self,
        path: Path,
        *,
        at: int | None = None,
        rank: int | None = None,
        pages: ReaderThread | None = None,
        opening: Future[Opening] | None = None,
    ) -> None:
        """Open a trace, in place of the one that is open; tell why if it cannot be read."""
        pages = pages or ReaderThread(str(path), "tracelens-pages")
        opening = opening or pages.submit(lambda reader: open_at(reader, at, rank))
        try:
            known = await pages.answer(opening)
        except TraceLensError as error:
            pages.close()
            self.say(str(error), severity="error")
            if self.model is None:
                await self.show_screen("runs")
            return
        if self.model is not None:
            self.end_following()
            self.model.close()
            await self.drop_screens()
        self.model = TraceModel(path, pages, known)
        self.model.start(self.call_later, self._rows_arrived)
        self.navigator = Navigator(self.model, self.progressed)
        await self.show_screen("ops")
        self.run_worker(self.read_story(), group="story", exclusive=True)
        self.start_following()

    def open_later(self, path: Path) -> None:
        """Open another trace, once the screen that asked for it has finished."""
        self.run_worker(self.open(path), group="open", exclusive=True)

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

    def say(self, text: str, *, severity: str = "information") -> None:
        """Tell something in passing."""
        self.notify(text, severity=severity, markup=False, timeout=4)  # type: ignore[arg-type]

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

    def _rows_arrived(self) -> None:
        arrived: Callable[[], None] | None = getattr(self.screen, "rows_arrived", None)
        if arrived is not None:
            arrived()

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

    def on_unmount(self) -> None:
        """End the threads, and first the search that one of them may be in."""
        if self.navigator is not None:
            self.navigator.cancel()
        self.end_following()
        if self.model is not None:
            self.model.close()


def view(
    path: str | None = None,
    *,
    at: int | None = None,
    serve: str | None = None,
    paused: bool = False,
    program: Sequence[str] = (),
) -> int:
    """Open the terminal interface and return the exit code (the face of ``tracelens view``).

    Args:
        path: the trace, or a directory of runs; the current directory's runs if ``None``.
        at: id of the op to start at.
        serve: ``HOST:PORT`` to show it at in a browser instead.
        paused: the program that writes the trace stands still: it may be let go on
            (``faces.GO_ON``) or ended (``faces.GIVE_UP``).
        program: a command to run beside the screens, which writes the trace; its exit code is
            ours.

    Raises:
        TraceError: the trace cannot be opened.
    """
    if serve is not None:
        try:
            from tracelens_tui.serve import serve as serve_at
        except ImportError as error:
            raise TraceLensError(
                f"{error.name} is not installed: pip install 'tracelens-toolkit[serve]'"
            ) from error
        return serve_at(path, at=at, address=serve)
    from tracelens_tui.start import start

    return start(path, at=at, paused=paused, command=program)
