"""The embedded engine: DuckDB behind the trace's own reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader
    from tracelens.storage.sql import QueryResult, Row


class DuckDBEngine:
    """Queries through a reader, which it owns.

    Args:
        reader: an open trace.
    """

    name = "duckdb"

    def __init__(self, reader: TraceReader) -> None:
        self.reader = reader
        self.problems: list[str] = []

    def rows(self, sql: str) -> list[Row]:
        """Run one of our own queries and return its rows."""
        return self.reader.sql(sql)

    def select(self, text: str, *, limit: int, timeout_s: float) -> QueryResult:
        """Run a person's SELECT, at most so many rows and seconds."""
        return self.reader.select(text, limit=limit, timeout_s=timeout_s)

    def close(self) -> None:
        """Close the trace."""
        self.reader.close()
