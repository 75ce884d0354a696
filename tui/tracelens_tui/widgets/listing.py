"""A list as the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Listing(Generic[T]):
    """Rows that are all in memory."""

    def __init__(self, rows: Sequence[T]) -> None:
        self.rows = rows

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.rows)

    def row(self, index: int) -> T | None:
        """Return one."""
        return self.rows[index] if 0 <= index < len(self.rows) else None
