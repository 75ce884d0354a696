"""The line at the bottom: searches, the filter, commands; and the progress of what searches."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from tracelens.commands import find
from tracelens.errors import TraceLensError
from tracelens_tui import keymap
from tracelens_tui.moving import Moving
from tracelens_tui.navigation import MAX_MATCHES
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.texts import count
from tracelens_tui.widgets.prompt import Prompt

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tracelens.events import Op

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


class Searching(Moving):
    """What is typed, and which rows are shown."""

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

    async def _filtered(self, job: Future[bool], selection: array[int], text: str) -> None:
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
