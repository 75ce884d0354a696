"""What the remaining keys of the application do."""

from __future__ import annotations

from collections.abc import Callable

from tracelens_tui import themes
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.searching import Searching
from tracelens_tui.texts import safe


class Actions(Searching):
    """Actions of keys that neither move nor search."""

    async def action_back(self) -> None:
        """Cancel what runs, close what is open, or go back to the ops."""
        if self.navigator is not None:
            self.navigator.cancel()
        screen = self.screen
        hide_why: Callable[[], bool] | None = getattr(screen, "hide_why", None)
        if not isinstance(screen, TraceScreen):
            self.pop_screen()
        elif screen.maximized is not None:
            screen.minimize()
        elif hide_why is not None and hide_why():
            return
        elif screen.NAME != "ops" and self.model is not None:
            await self.show_screen("ops")

    def action_zoom(self) -> None:
        """Give the focused pane the whole screen, or give the room back."""
        screen = self.screen
        zoomed = screen.maximized is not None
        if zoomed:
            screen.minimize()
        elif screen.focused is not None:
            screen.maximize(screen.focused, container=False)

    async def action_debug(self) -> None:
        """Go to the debugger's prompt at this op, in this terminal, and come back."""
        if self.navigator is None:
            self.say("open a trace first")
        elif self.paused and self.program is None:
            self.exit(0)
        elif self.is_web or self.is_headless:
            self.say("the prompt needs a terminal: tracelens debug", severity="warning")
        else:
            with self.suspend():
                move = await self.navigator.talk()
            self.refresh(layout=True)
            await self.arrived(move)

    async def action_export(self) -> None:
        """Ask where to write the values of the current op's first output."""
        op = self.model.op if self.model is not None else None
        if op is None:
            self.say("open a trace first")
        else:
            name = safe(op.name).rpartition("::")[2].replace("/", ".")
            await self.action_prompt(":", f"export out0 {name}-{op.op_id}.npy")

    def action_copy(self) -> None:
        """Copy the current op as text, and how to get at it in Python."""
        model = self.model
        if model is None or model.op is None:
            return
        from tracelens_tui.snippets import of_op

        self.copy_to_clipboard(of_op(model.path, model.op))
        self.say(f"copied {safe(model.op.name)} #{model.op.op_id}")

    def action_shot(self) -> None:
        """Save a picture of the screen."""
        self.deliver_screenshot()

    def action_next_theme(self) -> None:
        """Take the next of the themes."""
        at = themes.CYCLE.index(self.theme) if self.theme in themes.CYCLE else -1
        self.theme = themes.CYCLE[(at + 1) % len(themes.CYCLE)]
        self.say(f"theme: {self.theme}")

    def action_help(self) -> None:
        """Show the keys of the focused pane."""
        from tracelens_tui.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.screen.focused, self.screen))
