"""Laying slices out on lanes so that within a lane they nest or follow, and never cross."""

from __future__ import annotations

_SEARCHED_LANES = 64


class Lanes:
    """Gives each slice of one thread the first lane in which it fits.

    A viewer draws a thread's slices as a stack: a slice that starts inside another and ends after
    it would be drawn wrong, or dropped, so it goes to a lane of its own.

    Args:
        nest: a slice may lie inside another; on a device's stream none does.
    """

    def __init__(self, *, nest: bool = True) -> None:
        self._nest = nest
        self._open_ends: list[list[int]] = []
        self._last_starts: list[int] = []

    def place(self, start_ns: int, end_ns: int) -> int:
        """Return the lane (from 0) of the slice ``[start_ns, end_ns)``."""
        first = max(0, len(self._open_ends) - _SEARCHED_LANES)
        for lane in range(first, len(self._open_ends)):
            if self._fits(lane, start_ns, end_ns):
                return lane
        self._open_ends.append([end_ns])
        self._last_starts.append(start_ns)
        return len(self._open_ends) - 1

    def _fits(self, lane: int, start_ns: int, end_ns: int) -> bool:
        if start_ns < self._last_starts[lane]:
            return False
        ends = self._open_ends[lane]
        while ends and ends[-1] <= start_ns:
            ends.pop()
        if ends and (end_ns > ends[-1] or not self._nest):
            return False
        ends.append(end_ns)
        self._last_starts[lane] = start_ns
        return True
