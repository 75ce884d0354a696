"""A person's SQL on a trace: one SELECT, read-only, bounded in rows, time and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelens.storage.sql import QueryRefused, QueryResult

if TYPE_CHECKING:
    from tracelens.engines import Engine
    from tracelens.storage.reader import TraceReader

__all__ = ["DEFAULT_ROWS", "DEFAULT_TIMEOUT_S", "QueryRefused", "QueryResult", "run_query"]

DEFAULT_ROWS = 1_000
DEFAULT_TIMEOUT_S = 60.0


def run_query(
    reader: TraceReader | Engine,
    text: str,
    *,
    limit: int = DEFAULT_ROWS,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> QueryResult:
    """Run one SELECT (or WITH … SELECT) on a trace's tables and views.

    Args:
        reader: an open trace, or an engine over one (``tracelens.engines.open_engine``).
        text: the query; ``ops``, ``steps``, ``stats``, ``op_full``, ``timeline`` … are its tables.
        limit: rows to return at most; ``truncated`` tells whether there were more.
        timeout_s: seconds after which the query is stopped.

    Raises:
        QueryRefused: not one SELECT, an error in it, or too slow or too large. One line.
    """
    return reader.select(text, limit=limit, timeout_s=timeout_s)
