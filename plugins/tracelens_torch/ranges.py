"""Which value the bytes at an address hold: the id of the last op that wrote them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from tracelens.events import NO_ID

_MAX_PARTIAL = 64
_MAX_BLOCKS = 1 << 20


class _Block:
    __slots__ = ("high", "partial", "value_id")

    def __init__(self, high: int, value_id: int) -> None:
        self.high = high
        self.value_id = value_id
        self.partial: list[tuple[int, int, int]] = []


class ValueRanges:
    """Blocks of memory that ops made, disjoint, each with the partial writes that came after.

    Addresses are in bytes; ranges are ``[low, high)``. Memory that is reused replaces the
    blocks it overlaps. Past a bound on memory the oldest partial writes, or all blocks, are
    forgotten.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: dict[int, _Block] = {}

    def find(self, low: int, high: int) -> int:
        """Return the id of the value last written to any byte of a range, -1 if unknown."""
        block = self._blocks.get(low) or self._containing(low)
        if block is None:
            return NO_ID
        for part_low, part_high, value_id in reversed(block.partial):
            if part_low < high and low < part_high:
                return value_id
        return block.value_id

    def newest(self, low: int) -> int:
        """Return the last value written anywhere in the block that holds an address.

        It is what an in-place write follows, so that every write to a block leads to the one
        before it.
        """
        block = self._blocks.get(low) or self._containing(low)
        if block is None:
            return NO_ID
        return block.partial[-1][2] if block.partial else block.value_id

    def write(self, low: int, high: int, value_id: int, fresh: bool) -> None:
        """Remember a write.

        Args:
            low: first byte.
            high: past the last byte; an empty range is ignored.
            value_id: what the bytes hold now.
            fresh: the memory is the op's own; otherwise only these bytes of a block changed.
        """
        if high <= low:
            return
        block = self._blocks.get(low)
        if block is not None and block.high == high:
            block.value_id = value_id
            if block.partial:
                block.partial.clear()
            return
        if not fresh:
            block = block or self._containing(low)
            if block is not None and high <= block.high:
                block.partial = [p for p in block.partial if p[0] < low or p[1] > high]
                block.partial = [*block.partial[1 - _MAX_PARTIAL :], (low, high, value_id)]
                return
        self._insert(low, high, value_id)

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._blocks.clear()

    def _insert(self, low: int, high: int, value_id: int) -> None:
        if len(self._starts) >= _MAX_BLOCKS:
            self.clear()
        first = bisect_left(self._starts, low)
        if first and self._blocks[self._starts[first - 1]].high > low:
            first -= 1
        last = bisect_left(self._starts, high)
        for start in self._starts[first:last]:
            del self._blocks[start]
        self._starts[first:last] = [low]
        self._blocks[low] = _Block(high, value_id)

    def _containing(self, address: int) -> _Block | None:
        at = bisect_right(self._starts, address)
        if not at:
            return None
        block = self._blocks[self._starts[at - 1]]
        return block if address < block.high else None
