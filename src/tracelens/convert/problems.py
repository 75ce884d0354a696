"""Counts what an import could not read, so that a thousand equal faults are one line."""

from __future__ import annotations


class Problems:
    """Faults of one file, each with how often it came.

    Args:
        name: the file, as messages name it.

    Examples:
        >>> problems = Problems("a.json")
        >>> problems.add("events have no time"), problems.add("events have no time", 2)
        (None, None)
        >>> problems.lines()
        ['a.json: events have no time (3)']
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._counts: dict[str, int] = {}

    def add(self, what: str, count: int = 1) -> None:
        """Count a fault."""
        if count:
            self._counts[what] = self._counts.get(what, 0) + count

    def count(self, what: str) -> int:
        """Return how often a fault came."""
        return self._counts.get(what, 0)

    def summary(self) -> str:
        """Return all faults in one line, empty if there are none."""
        return "; ".join(f"{what} ({count})" for what, count in self._counts.items())

    def lines(self) -> list[str]:
        """Return a line for each fault, with its count."""
        return [f"{self.name}: {what} ({count})" for what, count in self._counts.items()]
