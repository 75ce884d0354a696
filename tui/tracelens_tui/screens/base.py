"""What every screen has: status line, tabs, footer, and word of moves and news."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from tracelens_tui.widgets.keys import Keys
from tracelens_tui.widgets.prompt import Prompt
from tracelens_tui.widgets.status import Status, Tabs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracelens_tui.app import TraceLensApp
    from tracelens_tui.model import TraceModel

NARROW_COLUMNS = 100
"""Below this width panes that stand side by side show one at a time."""


class TraceScreen(Screen[None]):
    """A screen of one open trace; subclasses fill ``body``."""

    NAME: ClassVar[str] = ""
    HELP = ""

    def compose(self) -> ComposeResult:
        """Lay out the frame around the body."""
        yield Status()
        yield Tabs(self.NAME)
        yield from self.body()
        yield Prompt()
        yield Keys()

    def body(self) -> Iterable[Widget]:
        """Yield what stands between the tabs and the footer."""
        return ()

    @property
    def tracelens(self) -> TraceLensApp:
        """The application."""
        return cast("TraceLensApp", self.app)

    @property
    def model(self) -> TraceModel:
        """The open trace."""
        model = self.tracelens.model
        assert model is not None
        return model

    def on_mount(self) -> None:
        """Show the state; screens add to this."""
        self.refresh_status()

    def on_screen_resume(self) -> None:
        """The screen came back: what it shows may be of another op."""
        self.refresh_status()
        self.moved()

    def on_resize(self) -> None:
        """Mark narrow terminals for the style sheet."""
        self.set_class(self.size.width < NARROW_COLUMNS, "narrow")
        self.set_class(self.size.height < 30, "low")

    def refresh_status(self, note: str = "") -> None:
        """Draw the status line anew."""
        app = self.tracelens
        self.query_one(Status).show(app.model, note, paused=app.paused)

    def moved(self) -> None:
        """The current op is another one."""

    def news(self) -> None:
        """The story was read, or the trace has grown."""
