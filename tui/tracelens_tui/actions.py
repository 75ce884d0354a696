"""What the keys of the application do."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from textual.app import App

from tracelens.commands import TABLE, find
from tracelens.errors import TraceLensError
from tracelens_tui import keymap, themes
from tracelens_tui.model import cause_id
from tracelens_tui.navigation import MAX_MATCHES, Move
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.texts import count, safe
from tracelens_tui.widgets.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tracelens.command import Context
    from tracelens.cursor import Cursor, Stop
    from tracelens.events import Op
    from tracelens_tui.model import TraceModel
    from tracelens_tui.navigation import Navigator
    from tracelens_tui.program import Program

_SAID_AS_WARNING = ("missing", "cancelled")
_WITHOUT_ARGUMENTS = (
    "zoom",
    "pause",
    "copy",
    "why",
    "help",
    "quit",
    "debug",
    "find-next",
    "find-previous",
)


def _finding_here(context: Context) -> dict[str, Any] | None:
    """Return the stored finding that names this op, or else the explanation of its values."""
    cursor = context.cursor
    stored = cursor.findings.at(cursor.op_id)
    told = next((each for each in stored if each.get("path")), None)
    return told or cursor.why()


class Actions(App[int]):
    """Actions of the keys in ``keymap.TUI_KEYS``."""

    paused: bool
    program: Program | None
    model: TraceModel | None
    navigator: Navigator | None

    # Moves

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

    # Search and filter

    async def action_prompt(self, kind: str, text: str = "") -> None:
        """Open the line at the bottom."""
        if isinstance(self.screen, TraceScreen):
            words = self.completions() if kind == ":" else ()
            await self.screen.query_one(Prompt).open(kind, text=text, words=words)

    async def on_prompt_entered(self, event: Prompt.Entered) -> None:
        """Do what was typed."""
        if event.kind == ":":
            if event.text:
                await self._typed(event.text)
        elif event.kind == "/":
            await self._search(event.text)
        elif event.kind == "f":
            await self.filter_ops(event.text)
        elif event.kind == "m":
            await self.action_command(f"mark {event.text}")
        elif event.kind == "g" and event.text:
            mark = event.text.removeprefix("'")
            verb = "jump" if event.text.startswith("'") else "goto"
            await self.action_command(f"{verb} {mark}")

    async def _typed(self, line: str) -> None:
        """Run a typed command; what this face answers itself never reaches the table."""
        word, _, rest = line.partition(" ")
        spec = find(word)
        name = spec.name if spec is not None else ""
        if name == "filter":
            await self.filter_ops(rest)
        elif name == "find" and rest:
            await self._search(rest)
        elif name in _WITHOUT_ARGUMENTS and not rest:
            await self.run_action(next(k.action for k in keymap.all_keys() if k.id == name))
        else:
            await self.action_command(line)

    async def _search(self, text: str) -> None:
        navigator = self.navigator
        if navigator is None:
            return
        if not text:
            navigator.search, navigator.search_text = None, ""
            return
        try:
            navigator.search = await navigator.understand(text)
        except TraceLensError as error:
            self.say(str(error), severity="error")
            return
        navigator.search_text = text
        await self.action_match(1)

    async def filter_ops(self, text: str) -> None:
        """Show only the ops that pass a filter; all of them if it is empty."""
        navigator = self.navigator
        if navigator is None:
            return
        if not text:
            self.action_clear_filter()
            return
        try:
            condition = await navigator.understand(text)
        except TraceLensError as error:
            self.say(str(error), severity="error")
            return
        navigator.filter_text = text
        selection = array("q")
        self.rows.select(selection)
        self.tell_news()

        def grown(ids: list[int]) -> None:
            if navigator.filter_text == text:
                first = not selection
                selection.extend(ids)
                self.rows.selection_grew()
                if first:
                    self.row_chosen(self.row_of_current())
                self.tell_news()

        job = navigator.matches(condition, lambda ids: self.call_later(grown, ids))
        self.run_worker(self._filtered(job, selection, text), group="filter", exclusive=True)

    async def _filtered(self, job: Any, selection: array[int], text: str) -> None:
        assert self.model is not None
        try:
            complete = await self.model.work.answer(job)
        except TraceLensError as error:
            self.say(str(error), severity="error")
            return
        if self.navigator is None or self.navigator.filter_text != text:
            return
        if len(selection) >= MAX_MATCHES:
            self.say(f"the first {count(len(selection))} ops that pass are shown")
        elif not complete:
            self.say("the search was cancelled; what it found is shown", severity="warning")
        self.tell_news()

    def action_clear_filter(self) -> None:
        """Show all ops again."""
        if self.navigator is not None and self.navigator.filter_text:
            self.navigator.cancel()
            self.navigator.filter_text = ""
            self.rows.select(None)
            self.tell_news()
            if isinstance(self.screen, TraceScreen):
                self.screen.moved()

    def progressed(self, done: int, total: int) -> None:
        """Show how far a search is (called from the work thread)."""
        if total:
            self.call_later(self.show_progress, done, total)

    def show_progress(self, done: int, total: int) -> None:
        """Show a search's progress in the status line; nothing once it is done."""
        if isinstance(self.screen, TraceScreen):
            note = f"searching {100 * done // total}%  (esc stops)" if done < total else ""
            self.screen.refresh_status(note)

    # Rows

    def row_of_current(self) -> int:
        """Return the row of the current op."""
        assert self.model is not None
        op_id = self.model.op.op_id if self.model.op is not None else -1
        return self.rows.index_of(self.model.position, op_id)

    def row_chosen(self, index: int) -> None:
        """The table's cursor went to a row."""
        model = self.model
        if model is None:
            return
        op = self.rows.row(index)
        if index != self.rows.count - 1:
            self.stop_following()
        if not self.rows.is_filtered:
            self.set_position(index, op)
        elif op is not None:
            self.set_position(model.position, op)
            self.run_worker(self._locate(op), group="locate", exclusive=True)

    async def _locate(self, op: Op) -> None:
        assert self.model is not None
        position = await self.model.position_of(op.op_id)
        if position is not None and self.model.op is op:
            self.model.position = position
            if isinstance(self.screen, TraceScreen):
                self.screen.refresh_status()

    # The rest

    def action_back(self) -> None:
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
            self.call_later(self.show_screen, "ops")

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
