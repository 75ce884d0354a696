"""Two traces side by side: ops paired by step and by their order in it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from tracelens.events import Op, Stats
from tracelens.storage.reader import TraceReader
from tracelens_tui.worker import ReaderThread

_PAGE = 64
_CACHED = 32
_CLOSE = 1e-4
"""Statistics closer than this, relative to the larger, count as equal."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of the comparison.

    Attributes:
        left: the op of the first trace; ``None`` if it has no counterpart.
        right: the op of the second.
    """

    left: Op | None
    right: Op | None

    @property
    def sign(self) -> str:
        """``=`` equal, ``≈`` close, ``≠`` values differ, ``≁`` another op, ``‹`` ``›`` one only."""
        if self.left is None or self.right is None:
            return "›" if self.left is None else "‹"
        if self.left.name.rpartition("::")[2] != self.right.name.rpartition("::")[2]:
            return "≁"
        return _compare(_first(self.left), _first(self.right))


def _first(op: Op) -> Stats | None:
    return op.outputs[0].stats if op.outputs else None


def _compare(left: Stats | None, right: Stats | None) -> str:
    if left is None or right is None:
        return "·"
    if (left.nan, left.posinf, left.neginf) != (right.nan, right.posinf, right.neginf):
        return "≠"
    pairs = ((left.vmin, right.vmin), (left.vmax, right.vmax), (left.l2, right.l2))
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if all(a == b for a, b in known):
        return "="
    scale = max((max(abs(a), abs(b)) for a, b in known), default=0.0)
    return "≈" if all(abs(a - b) <= _CLOSE * scale for a, b in known) else "≠"


@dataclass(frozen=True, slots=True)
class Steps:
    """Where the steps of a trace begin among its ops.

    Attributes:
        numbers: step numbers, ascending.
        starts: position of the first op of each, and the end.
    """

    numbers: list[int]
    starts: list[int]


def steps_of(reader: TraceReader, rank: int) -> Steps:
    """Count the ops of every step.

    Raises:
        QueryRefused: the trace's tables cannot be queried.
    """
    rows = reader.sql(
        f"SELECT step, count(*) FROM ops WHERE rank = {int(rank)} GROUP BY step ORDER BY step"
    )
    starts = [0]
    for _, n in rows:
        starts.append(starts[-1] + n)
    return Steps([step for step, _ in rows], starts)


@dataclass(frozen=True, slots=True)
class Block:
    """A step of both traces: rows ``[row, row + length)``."""

    row: int
    length: int
    left: tuple[int, int]
    right: tuple[int, int]


def blocks_of(left: Steps, right: Steps) -> list[Block]:
    """Align two traces by step; a step that only one has stands alone."""
    places = [
        {step: (trace.starts[at], trace.starts[at + 1]) for at, step in enumerate(trace.numbers)}
        for trace in (left, right)
    ]
    blocks: list[Block] = []
    row = 0
    for step in sorted({*left.numbers, *right.numbers}):
        one, two = places[0].get(step, (0, 0)), places[1].get(step, (0, 0))
        length = max(one[1] - one[0], two[1] - two[0])
        blocks.append(Block(row, length, one, two))
        row += length
    return blocks


class PairRows:
    """Rows of the comparison, read a page at a time from both traces.

    Args:
        left: reads the first trace.
        right: reads the second.
        blocks: how their steps align.
        post: runs a function in the screen's thread.
        changed: called there when a page has arrived.
    """

    def __init__(
        self,
        left: ReaderThread,
        right: ReaderThread,
        blocks: list[Block],
        post: Callable[[Callable[[], None]], object],
        changed: Callable[[], None],
    ) -> None:
        self._threads = (left, right)
        self._blocks = blocks
        self._rows = [block.row for block in blocks]
        self._post = post
        self._changed = changed
        self._pages: OrderedDict[int, list[Pair]] = OrderedDict()
        self._waiting: set[int] = set()

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self._blocks[-1].row + self._blocks[-1].length if self._blocks else 0

    def row(self, index: int) -> Pair | None:
        """Return a row, ``None`` if it is not read yet."""
        if not 0 <= index < self.count:
            return None
        number, offset = divmod(index, _PAGE)
        page = self._pages.get(number)
        if page is None:
            self._request(number)
            return None
        self._pages.move_to_end(number)
        return page[offset] if offset < len(page) else None

    def row_of(self, position: int) -> int:
        """Return the row of an op of the first trace by its position."""
        for block in self._blocks:
            if block.left[0] <= position < block.left[1]:
                return block.row + position - block.left[0]
        return 0

    async def next_difference(self, after: int, direction: int, most: int = 20_000) -> int | None:
        """Return the next row that differs, ``None`` if there is none within ``most`` rows."""
        row = after + direction
        while 0 <= row < self.count and abs(row - after) <= most:
            first = row // _PAGE * _PAGE
            pairs = await self._read(first // _PAGE)
            while first <= row < first + len(pairs):
                if pairs[row - first].sign in "≠≁‹›":
                    return row
                row += direction
        return None

    async def _read(self, number: int) -> list[Pair]:
        sides = [self._ask(number, side) for side in (0, 1)]
        left = await self._threads[0].answer(sides[0])
        right = await self._threads[1].answer(sides[1])
        return self._pairs(number, left, right)

    def _request(self, number: int) -> None:
        if number in self._waiting:
            return
        self._waiting.add(number)
        sides = [self._ask(number, side) for side in (0, 1)]

        def arrived(_: object) -> None:
            if all(side.done() for side in sides):
                self._post(lambda: self._arrived(number, sides))

        for side in sides:
            side.add_done_callback(arrived)

    def _arrived(self, number: int, sides: list[Future[dict[int, Op]]]) -> None:
        if number not in self._waiting:
            return
        self._waiting.discard(number)
        if any(side.cancelled() or side.exception() for side in sides):
            return
        self._pages[number] = self._pairs(number, sides[0].result(), sides[1].result())
        while len(self._pages) > _CACHED:
            self._pages.popitem(last=False)
        self._changed()

    def _pairs(self, number: int, left: dict[int, Op], right: dict[int, Op]) -> list[Pair]:
        first = number * _PAGE
        last = min(first + _PAGE, self.count)
        return [Pair(left.get(row), right.get(row)) for row in range(first, last)]

    def _ask(self, number: int, side: int) -> Future[dict[int, Op]]:
        """Read one side of a page: ops by row."""
        first = number * _PAGE
        last = min(first + _PAGE, self.count)
        wanted: list[tuple[int, int, int]] = []
        for block in self._blocks[max(0, bisect_right(self._rows, first) - 1) :]:
            if block.row >= last:
                break
            begin, end = (block.left, block.right)[side]
            low = max(first, block.row)
            high = min(last, block.row + end - begin)
            if low < high:
                wanted.append((low, begin + low - block.row, begin + high - block.row))

        def read(reader: TraceReader) -> dict[int, Op]:
            found: dict[int, Op] = {}
            rank = (reader.ranks() or [0])[0]
            for row, start, stop in wanted:
                for offset, op in enumerate(reader.ops_at(start, stop, rank=rank)):
                    found[row + offset] = op
            return found

        return self._threads[side].submit(read, urgent=True)
