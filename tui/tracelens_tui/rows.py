"""The rows of the op table: pages of ops, read when they come into view."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracelens.events import Op
    from tracelens.storage.reader import TraceReader
    from tracelens_tui.worker import ReaderThread

PAGE_ROWS = 64
_SELECTED_ROWS = 16
"""Ops that a filter leaves lie far apart and cost a query each, so their pages are smaller."""

_CACHED_PAGES = 64
_MOST_WAITING = 6


class OpRows:
    """Ops by row, of one rank, all of them or a selection.

    A row that is not in memory is asked for and ``None`` until it is there; ``changed`` is called
    then. At most 64 pages of 64 ops are kept.

    Args:
        thread: reads the pages.
        rank: whose ops.
        post: runs a function in the screen's thread; called from the reader's thread.
        changed: called, in the screen's thread, when a page has arrived.
    """

    def __init__(
        self,
        thread: ReaderThread,
        rank: int,
        post: Callable[[Callable[[], None]], object],
        changed: Callable[[], None],
    ) -> None:
        self._thread = thread
        self._rank = rank
        self._post = post
        self._changed = changed
        self._pages: OrderedDict[int, list[Op]] = OrderedDict()
        self._waiting: OrderedDict[int, Future[list[Op]]] = OrderedDict()
        self._selection: array[int] | None = None
        self._generation = 0
        self._total = 0
        self._tail: list[Op | None] = []

    @property
    def count(self) -> int:
        """How many rows there are."""
        if self._selection is not None:
            return len(self._selection)
        return self._total + len(self._tail)

    @property
    def is_filtered(self) -> bool:
        """Whether only a selection of the ops is shown."""
        return self._selection is not None

    def set_total(self, total: int, *, page: int = 0, ops: Sequence[Op] = ()) -> None:
        """Say how many ops the trace holds; the page that was not full is read again.

        Args:
            total: how many.
            page: a page that was read already.
            ops: its ops.
        """
        if total != self._total:
            self._pages.pop(self._total // PAGE_ROWS, None)
        self._total = total
        self._tail = []
        if ops:
            self._pages[page] = list(ops)

    @property
    def total(self) -> int:
        """How many ops there are, filtered out or not."""
        return self._total + len(self._tail)

    @property
    def unsealed(self) -> int:
        """How many ops the readers' snapshot does not hold yet."""
        return len(self._tail)

    def extend(self, ops: Sequence[Op], *, gap: bool = False) -> None:
        """Append ops of a running trace that the readers' snapshot does not hold yet.

        Each goes where its id belongs: a composite op is recorded after those that it called.

        Args:
            ops: the new ops.
            gap: others came before them that were not delivered; a row stands for them.
        """
        if gap and self._tail[-1:] != [None]:
            self._tail.append(None)
        for op in ops:
            at = len(self._tail)
            while at > 0:
                before = self._tail[at - 1]
                if before is None or before.op_id < op.op_id:
                    break
                at -= 1
            self._tail.insert(at, op)

    def grow(self, total: int, last_id: int) -> None:
        """The readers look at a newer snapshot.

        Args:
            total: ops in it.
            last_id: the largest id in it; later ops stay as they are.
        """
        # The last pages too: an op that called others is recorded after them, but stands before.
        later: list[Op | None] = [op for op in self._tail if op is not None and op.op_id > last_id]
        for number in [n for n in self._pages if (n + 3) * PAGE_ROWS > self._total]:
            del self._pages[number]
        self._total = total
        self._tail = later

    def select(self, op_ids: array[int] | None) -> None:
        """Show only the ops with these ids (ascending; it may grow); all of them if ``None``."""
        self._selection = op_ids
        self.forget()

    def selection_grew(self) -> None:
        """Ids were appended to the selection: its last page is read again."""
        if self._selection is not None:
            for number in [n for n, page in self._pages.items() if len(page) < _SELECTED_ROWS]:
                del self._pages[number]

    def forget(self) -> None:
        """Drop every page: what the reader would return has changed."""
        self._generation += 1
        self._pages.clear()
        for answer in self._waiting.values():
            answer.cancel()
        self._waiting.clear()

    def row(self, index: int) -> Op | None:
        """Return an op, ``None`` if it is not read yet or out of range."""
        if not 0 <= index < self.count:
            return None
        if self._selection is None and index >= self._total:
            return self._tail[index - self._total]
        number, offset = divmod(index, self._page_rows)
        page = self._pages.get(number)
        if page is None:
            self._request(number)
            return None
        self._pages.move_to_end(number)
        return page[offset] if offset < len(page) else None

    def index_of(self, position: int, op_id: int) -> int:
        """Return the row of an op, or the last row before it where it is filtered out.

        Args:
            position: its position among all ops.
            op_id: its id.
        """
        if self._selection is None:
            return position
        return max(bisect_right(self._selection, op_id) - 1, 0)

    def holds(self, op_id: int) -> bool:
        """Tell whether an op passes the filter."""
        if self._selection is None:
            return True
        at = bisect_right(self._selection, op_id)
        return at > 0 and self._selection[at - 1] == op_id

    @property
    def _page_rows(self) -> int:
        return PAGE_ROWS if self._selection is None else _SELECTED_ROWS

    def _request(self, number: int) -> None:
        if number in self._waiting:
            return
        # Someone who scrolls fast wants the page under the eyes, not those passed on the way.
        while len(self._waiting) > _MOST_WAITING:
            _, stale = self._waiting.popitem(last=False)
            stale.cancel()
        generation = self._generation
        start = number * self._page_rows
        if self._selection is not None:
            wanted = self._selection[start : start + _SELECTED_ROWS]
            answer = self._thread.submit(partial(_by_ids, ids=wanted, rank=self._rank), urgent=True)
        else:
            stop = min(start + PAGE_ROWS, self._total)
            answer = self._thread.submit(
                lambda reader: reader.ops_at(start, stop, rank=self._rank), urgent=True
            )
        self._waiting[number] = answer
        answer.add_done_callback(
            lambda done: self._post(lambda: self._arrived(number, generation, done))
        )

    def _arrived(self, number: int, generation: int, answer: Future[list[Op]]) -> None:
        if answer.cancelled() or generation != self._generation:
            return
        self._waiting.pop(number, None)
        error = answer.exception()
        self._pages[number] = [] if error is not None else answer.result()
        while len(self._pages) > _CACHED_PAGES:
            self._pages.popitem(last=False)
        self._changed()


def _by_ids(reader: TraceReader, ids: Sequence[int], rank: int) -> list[Op]:
    found = (reader.op(op_id, rank) for op_id in ids)
    return [op for op in found if op is not None]
