"""Moving the cursor of the core: single steps, findings, searches, the filter, every command."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tracelens import filters
from tracelens.actions.views import frames
from tracelens.command import Answer, Context
from tracelens.commands import run_line
from tracelens.events import Op, Source

if TYPE_CHECKING:
    from tracelens.breakpoints import Breakpoint
    from tracelens.cursor import Cursor, Stop
    from tracelens.storage.reader import TraceReader
    from tracelens_tui.model import TraceModel

MAX_MATCHES = 1_000_000
"""A filter shows at most this many ops."""

_BATCH = 2_000

T = TypeVar("T")
Progress = Callable[[int, int], None]

_EXPRESSION = re.compile(r"[@:<>=~!*()]|\b(and|or|not)\b")


@dataclass(frozen=True, slots=True)
class Move:
    """Where a move or a command ended.

    Attributes:
        answer: what it had to say.
        op: the op that the cursor is at.
        position: that op's position among all ops.
        frame: which of the op's source lines was chosen, and its label; ``None`` for its own.
        breaks: breakpoints and watches.
        marks: bookmarks by op id.
    """

    answer: Answer
    op: Op | None
    position: int
    frame: Source | None = None
    breaks: tuple[Breakpoint, ...] = ()
    marks: dict[int, str] = field(default_factory=dict)


def understand(text: str, findings: list[int]) -> filters.Filter:
    """Read what was typed after ``/`` or ``f``: an expression, or a word found anywhere.

    Raises:
        FilterError: it is neither.

    Examples:
        >>> understand("softmax", []).text
        'op~"softmax" or module~"softmax" or function~"softmax" or code~"softmax" or file~"softmax"'
        >>> understand("op~log", []).text
        'op~log'
    """
    text = text.strip()
    if _EXPRESSION.search(text):
        return filters.compile(text, findings)
    quoted = '"' + re.escape(text).replace('"', ".") + '"'
    parts = (f"{field}~{quoted}" for field in ("op", "module", "function", "code", "file"))
    return filters.compile(" or ".join(parts), findings)


class Navigator:
    """Runs moves of a ``Cursor`` in the work thread; the app goes where it ended.

    A new move cancels the one that still searches.

    Args:
        model: the open trace.
        progress: called from the work thread with ops looked at and ops there are.
    """

    def __init__(self, model: TraceModel, progress: Progress) -> None:
        self._model = model
        self._progress = progress
        self._cancel = threading.Event()
        self._context: Context | None = None
        self._generation = model.generation
        self.search: filters.Filter | None = None
        self.search_text = ""
        self.filter_text = ""

    def cancel(self) -> None:
        """End the search that runs, if one does."""
        self._cancel.set()

    async def ask(self, question: Callable[[Context], T]) -> T:
        """Ask something of the cursor, which stands at the current op, in the work thread.

        Raises:
            TraceLensError: what was asked cannot be done.
        """
        self._cancel.set()
        self._cancel = cancel = threading.Event()
        here = self._model.op.op_id if self._model.op is not None else None

        def run(reader: TraceReader) -> T:
            context = self._at(reader, here)
            context.cursor.cancelled = cancel.is_set
            return question(context)

        return await self._model.work.ask(run)

    async def move(self, how: Callable[[Cursor], Stop]) -> Move:
        """Make a move of the cursor.

        Raises:
            TraceLensError: it cannot be made.
        """

        def run(context: Context) -> Move:
            stop = how(context.cursor)
            context.frame = 0
            lines = (stop.note,) if stop.note else ()
            return _told(context, Answer(lines, moved=True, stop=stop))

        return await self.ask(run)

    async def command(self, line: str, width: int) -> Move:
        """Run a line of the command table."""

        def run(context: Context) -> Move:
            context.width = width
            return _told(context, run_line(context, line))

        return await self.ask(run)

    async def talk(self) -> Move:
        """Hold a conversation at the prompt, in the work thread, until the user leaves it."""
        from tracelens.prompt import converse

        def run(context: Context) -> Move:
            context.cursor.progress = None
            converse(context, color=True)
            context.cursor.progress = self._progress
            return _told(context, Answer(moved=True))

        return await self.ask(run)

    async def match(self, direction: int) -> Move | None:
        """Go to the next or previous op that the search matches; ``None`` without a search."""
        condition = self.search
        if condition is None:
            return None
        return await self.move(lambda cursor: cursor.find(condition, back=direction < 0))

    async def understand(self, text: str) -> filters.Filter:
        """Read a search or a filter.

        Raises:
            FilterError: it cannot be understood.
        """
        if "@finding" in text:
            return await self.ask(lambda c: understand(text, c.cursor.findings.op_ids()))
        return understand(text, [])

    def matches(
        self, condition: filters.Filter, found: Callable[[list[int]], object]
    ) -> Future[bool]:
        """Look for all ops that pass a filter, a batch at a time.

        Args:
            condition: the filter.
            found: called from the work thread with each batch of ids, ascending.

        Returns:
            Whether all matches were found: it was not cancelled, and they were not too many.
        """
        self._cancel.set()
        self._cancel = cancel = threading.Event()
        rank, ops = self._model.rank, self._model.total

        def progress(done: int, left: int) -> None:
            # Each batch counts what is left from where it begins.
            self._progress(ops - left + done, ops)

        def look(reader: TraceReader) -> bool:
            last, told = -1, 0
            while True:
                batch = reader.find(
                    condition,
                    rank=rank,
                    after=last,
                    limit=_BATCH,
                    progress=progress,
                    cancelled=cancel.is_set,
                )
                if batch.op_ids:
                    last = batch.op_ids[-1]
                    told += len(batch.op_ids)
                    found(list(batch.op_ids))
                if not batch.complete or told >= MAX_MATCHES:
                    return False
                if len(batch.op_ids) < _BATCH:
                    return True

        return self._model.work.submit(look)

    def _at(self, reader: TraceReader, op_id: int | None) -> Context:
        """Return the cursor's context, brought to the op that is current on the screen."""
        if self._context is None:
            # Cursors know the rules of the analysis; the first rows do not wait for them.
            from tracelens.cursor import Cursor

            self._context = Context(Cursor(reader, self._model.rank))
            self._context.cursor.progress = self._progress
        cursor = self._context.cursor
        if self._generation != self._model.generation:
            self._generation = self._model.generation
            cursor.refresh()
        if op_id is not None and cursor.op_id != op_id:
            cursor.goto(op_id=op_id)
            self._context.frame = 0
        return self._context


def _told(context: Context, answer: Answer) -> Move:
    cursor = context.cursor
    source: Source | None = None
    if context.frame and cursor.op is not None:
        known = frames(context, cursor.op)
        source = known[context.frame][1] if context.frame < len(known) else None
    places = (
        (cursor.marks.get(name, cursor.rank), name) for name in cursor.marks.names(cursor.rank)
    )
    marks = {op_id: name for op_id, name in places if op_id is not None}
    return Move(answer, cursor.op, cursor.index, source, tuple(cursor.breaks), marks)
