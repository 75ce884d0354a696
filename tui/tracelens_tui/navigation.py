"""Moving the cursor of the core: single steps, findings, searches, the filter, every command."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from tracelens import filters
from tracelens.cursor import Cursor, Stop
from tracelens.events import Op
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
    """Where a move ended.

    Attributes:
        stop: what the cursor said.
        position: the op's position among all ops.
    """

    stop: Stop
    position: int

    @property
    def op(self) -> Op | None:
        """The op it ended at."""
        return self.stop.op


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
        self._cursor: Cursor | None = None
        self.search: filters.Filter | None = None
        self.search_text = ""
        self.filter_text = ""

    def cancel(self) -> None:
        """End the search that runs, if one does."""
        self._cancel.set()

    async def ask(self, question: Callable[[Cursor], T]) -> T:
        """Ask something of the cursor, which stands at the current op, in the work thread.

        Raises:
            TraceLensError: what was asked cannot be done.
        """
        self._cancel.set()
        self._cancel = cancel = threading.Event()
        here = self._model.op.op_id if self._model.op is not None else None

        def run(reader: TraceReader) -> T:
            cursor = self._at(reader, here)
            cursor.cancelled = cancel.is_set
            return question(cursor)

        return await self._model.work.ask(run)

    async def move(self, how: Callable[[Cursor], Stop]) -> Move:
        """Make a move of the cursor.

        Raises:
            TraceLensError: it cannot be made.
        """

        def run(cursor: Cursor) -> Move:
            stop = how(cursor)
            return Move(stop, cursor.index)

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
            return await self.ask(lambda cursor: understand(text, cursor.findings.op_ids()))
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
        rank = self._model.rank

        def look(reader: TraceReader) -> bool:
            last, told = -1, 0
            while True:
                batch = reader.find(
                    condition,
                    rank=rank,
                    after=last,
                    limit=_BATCH,
                    progress=self._progress,
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

    def _at(self, reader: TraceReader, op_id: int | None) -> Cursor:
        """Return the cursor, brought to the op that is current on the screen."""
        if self._cursor is None:
            self._cursor = Cursor(reader, self._model.rank)
            self._cursor.progress = self._progress
        if op_id is not None and self._cursor.op_id != op_id:
            self._cursor.goto(op_id=op_id)
        return self._cursor
