"""The application: one open trace, the screens over it, the keys that every screen has."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import BindingType

from tracelens.errors import TraceLensError
from tracelens_tui import keymap
from tracelens_tui.beside import Beside
from tracelens_tui.model import TraceModel
from tracelens_tui.navigation import Navigator
from tracelens_tui.opening import open_at
from tracelens_tui.themes import DARK, THEMES, extra_variables
from tracelens_tui.worker import ReaderThread

if TYPE_CHECKING:
    from textual.command import Provider

    from tracelens.control import Stopped
    from tracelens_tui.opening import Opening


def _palette() -> type[Provider]:
    """Return the palette's provider, imported when the palette is first opened."""
    from tracelens_tui.palette import CommandPalette

    return CommandPalette


class TraceLensApp(Beside):
    """Shows one trace, step by step, or the runs of a directory."""

    TITLE = "tracelens"
    CSS_PATH = "tracelens.tcss"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_palette}
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
        self.paused = paused
        self._command = command
        self._path = path
        self._at = at
        self._pages = pages
        self._opening = opening

    def get_css_variables(self) -> dict[str, str]:
        """Return the theme's colours and ours."""
        known = super().get_css_variables()
        return {**known, **extra_variables(self.current_theme, known)}

    async def on_mount(self) -> None:
        """Open what was asked for."""
        try:
            self.set_keymap(keymap.user_keymap())
        except TraceLensError as error:
            self.say(str(error), severity="error")
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
        pages = pages or ReaderThread(str(path), "tracelens-pages", whole_shards=False)
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
        self.model.start(self.call_later, self.rows_arrived)
        self.navigator = Navigator(self.model, self.progressed)
        await self.show_screen("ops")
        self.call_after_refresh(self._opened)

    def _opened(self) -> None:
        """The first rows are drawn: now the rest."""
        gc.enable()
        self.run_worker(self.read_story(), group="story", exclusive=True)
        self.start_following()

    def open_later(self, path: Path, rank: int | None = None) -> None:
        """Open another trace or rank, once the screen that asked for it has finished."""
        self.run_worker(self.open(path, rank=rank), group="open", exclusive=True)

    def action_next_rank(self) -> None:
        """Show the ops of the next rank of the run."""
        model = self.model
        if model is None or len(model.ranks) < 2:
            self.say("this run has one rank only" if model else "open a trace first")
            return
        at = model.ranks.index(model.rank) if model.rank in model.ranks else -1
        self.open_later(model.path, model.ranks[(at + 1) % len(model.ranks)])

    def on_unmount(self) -> None:
        """End the threads, and first the search that one of them may be in."""
        if self.navigator is not None:
            self.navigator.cancel()
        self.end_following()
        if self.model is not None:
            self.model.close()
