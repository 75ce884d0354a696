"""Moving through the trace by the command table, and showing where a move ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracelens.commands import TABLE
from tracelens.errors import TraceLensError
from tracelens_tui.model import cause_id
from tracelens_tui.shell import Shell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tracelens.command import Context
    from tracelens.cursor import Cursor, Stop
    from tracelens_tui.navigation import Move

_SAID_AS_WARNING = ("missing", "cancelled")


def _finding_here(context: Context) -> dict[str, Any] | None:
    """Return the stored finding that names this op, or else the explanation of its values."""
    cursor = context.cursor
    stored = cursor.findings.at(cursor.op_id)
    told = next((each for each in stored if each.get("path")), None)
    return told or cursor.why()


class Moving(Shell):
    """Commands and moves of the cursor."""

    async def action_command(self, line: str) -> None:
        """Run a line of the command table."""
        if self.navigator is None:
            self.say("open a trace first")
            return
        await self._arrive(self.navigator.command(line, max(40, min(self.size.width, 112) - 8)))

    def completions(self) -> tuple[str, ...]:
        """Return what the command line completes."""
        return tuple(spec.name for spec in TABLE if spec.only != "prompt")

    async def action_match(self, direction: int) -> None:
        """Go to the next or previous match of the search."""
        if self.navigator is None:
            return
        if self.navigator.search is None:
            self.say("search first: press /")
            return
        await self._arrive(self.navigator.match(direction))

    async def go(self, how: Callable[[Cursor], Stop]) -> None:
        """Make a move of the cursor and show where it ended."""
        if self.navigator is not None:
            await self._arrive(self.navigator.move(how))

    async def go_to_op(self, op_id: int) -> None:
        """Go to one op."""
        await self.go(lambda cursor: cursor.goto(op_id=op_id))

    async def _arrive(self, moving: Awaitable[Move | None]) -> None:
        try:
            move = await moving
        except TraceLensError as error:
            self.say(str(error), severity="error")
            return
        if move is not None:
            await self.arrived(move)

    async def arrived(self, move: Move) -> None:
        """Show where a move or command ended and what it had to say."""
        assert self.model is not None
        answer, stop = move.answer, move.answer.stop
        self.model.breaks, self.model.marks = move.breaks, move.marks
        if move.op is not None and (answer.moved or move.frame != self.model.frame):
            self.stop_following()
            self.set_position(move.position, move.op, move.frame)
            if not answer.moved:
                return  # the source pane shows the frame that `up` or `down` chose
        else:
            self.tell_news()
        if answer.request == "quit":
            self.exit(0)
        elif stop is not None:
            if stop.reason in ("breakpoint", "watch"):
                self.say(f"stopped at {stop.reason} {stop.breakpoint}")
            elif stop.note:
                warning = stop.reason in _SAID_AS_WARNING
                self.say(stop.note, severity="warning" if warning else "information")
        elif len(answer.lines) == 1:
            self.say(answer.lines[0], severity="error" if answer.error else "information")
        elif answer.lines:
            from tracelens_tui.screens.answer import AnswerScreen

            self.push_screen(AnswerScreen(answer.lines))

    async def action_why(self) -> None:
        """Show the chain from the first cause to the sink: of this op, or of the worst finding."""
        if self.navigator is None or self.model is None:
            return
        try:
            finding = await self.navigator.ask(_finding_here)
        except TraceLensError as error:
            self.say(str(error), severity="error")
            return
        if finding is None and self.model.story.findings:
            finding = self.model.story.findings[0]
        if finding is None:
            self.say("this op read and wrote finite values only, and there is no finding")
            return
        await self.show_finding(finding)

    async def show_finding(self, finding: dict[str, Any]) -> None:
        """Go to the first cause of a finding and show its chain."""
        from tracelens_tui.screens.ops import OpsScreen

        await self.show_screen("ops")
        op_id = cause_id(finding)
        if op_id is not None:
            await self.go_to_op(op_id)
        if isinstance(self.screen, OpsScreen):
            self.screen.show_why(finding)
