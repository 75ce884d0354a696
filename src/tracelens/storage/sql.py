"""DuckDB over one trace's segments, locked down: it reads those files and nothing else.

DuckDB is imported when the first query runs. The connection may open exactly the segment files
it was given (``allowed_paths``), has a memory limit, no spilling to disk, no extensions, and a
locked configuration, so that neither a query nor a hostile trace reaches anything outside.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tracelens.errors import TraceError, TraceLensError

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Row = tuple[Any, ...]

MEMORY_LIMIT_BYTES = 1 << 30
_WATCH_INTERVAL_S = 0.05
# Functions that change the process or run foreign code; DuckDB refuses most of them when its
# configuration is locked, and none of them has a use in reading a trace.
_FORBIDDEN = re.compile(
    r"\b(?:(?:en|dis)able_(?:logging|profiling)|write_log|truncate_duckdb_logs|(?:force_)?checkpoint"
    r"|python_\w+|(?:pandas|arrow|seq)_scan\w*|\w*external_resource\w*|json_execute_serialized_sql"
    r"|read_duckdb|setseed|setval)\s*\(",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a query returned.

    Attributes:
        columns: column names, in order.
        types: DuckDB's name of each column's type.
        rows: at most the row limit asked for.
        truncated: there were more rows.
        duration_ns: from the call to the last row.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[Row]
    truncated: bool
    duration_ns: int


class QueryRefused(TraceLensError):
    """A query that is not one SELECT, or that failed; the message is one line."""


def quote_literal(text: str) -> str:
    """Return ``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _literal(path: Path) -> str:
    return quote_literal(str(path))


def quote_path(path: Path) -> str:
    """Return a path as an SQL string literal in which no character is a wildcard."""
    return quote_literal(re.sub(r"[*?\[]", r"[\g<0>]", str(path)))


def one_line(message: str) -> str:
    """Shorten a DuckDB message to one line: its text and its hint, without the query's echo."""
    lines = []
    for line in message.splitlines():
        if line.startswith("LINE "):
            break
        if line.strip():
            lines.append(line.strip())
    text = " ".join(lines) or "the query failed"
    return text if len(text) <= 300 else text[:297] + "..."


class Database:
    """A connection to an empty in-memory database that may open a trace's segments.

    Args:
        files: segment files the connection may open, as absolute paths.
        memory_limit_bytes: DuckDB's own limit; the watchdog stops a query at twice as much.
    """

    def __init__(
        self, files: Iterable[Path], *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES
    ) -> None:
        import duckdb

        self._limit_bytes = memory_limit_bytes
        self._lock = threading.Lock()
        config: dict[str, Any] = {
            "memory_limit": f"{max(64, memory_limit_bytes >> 20)}MB",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
            "temp_directory": "",
            "max_temp_directory_size": "0GB",
            "preserve_insertion_order": False,
        }
        self._connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:", config=config)
        try:
            # DuckDB checks a path twice: as it is written in a query, and as a file.
            allowed = {f(path): None for path in files for f in (_literal, quote_path)}
            paths = ", ".join(allowed)
            self._connection.execute(f"SET allowed_paths = [{paths}]")
            # Footers are read once; the cache is a matter of speed, and not in every DuckDB.
            with contextlib.suppress(duckdb.Error):
                self._connection.execute("SET parquet_metadata_cache = true")
            self._connection.execute("SET enable_external_access = false")
            self._connection.execute("SET lock_configuration = true")
        except duckdb.Error as error:
            self._connection.close()
            raise TraceError(f"the trace cannot be queried: {one_line(str(error))}") from None

    def table(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[tuple[str, ...], list[Row]]:
        """Run one of our own statements; return its columns' types and its rows.

        Raises:
            TraceError: DuckDB could not read the trace.
        """
        import duckdb

        with self._lock:
            try:
                cursor = self._connection.execute(sql, list(parameters))
                types = tuple(str(column[1]) for column in cursor.description or ())
                return types, cursor.fetchall()
            except duckdb.Error as error:
                raise TraceError(f"the trace could not be read: {one_line(str(error))}") from None

    def register(self, name: str, table: pa.Table) -> None:
        """Make an in-memory table known under a name."""
        with self._lock:
            self._connection.register(name, table)

    def close(self) -> None:
        """Close the connection; idempotent."""
        with self._lock:
            self._connection.close()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one of our own statements and return its rows.

        Raises:
            TraceError: DuckDB could not read the trace.
        """
        return self.table(sql, parameters)[1]

    def integers(self, sql: str, parameters: Sequence[Any] = ()) -> NDArray[np.int64]:
        """Run one of our own statements and return its only column, of integers without NULL.

        Raises:
            TraceError: DuckDB could not read the trace.
        """
        import duckdb
        import numpy as np

        with self._lock:
            try:
                columns = self._connection.execute(sql, list(parameters)).fetchnumpy()
            except duckdb.Error as error:
                raise TraceError(f"the trace could not be read: {one_line(str(error))}") from None
        return np.ascontiguousarray(next(iter(columns.values())), dtype=np.int64)

    def select(self, text: str, *, limit: int, timeout_s: float) -> QueryResult:
        """Run a person's query: one SELECT, at most ``limit`` rows, at most ``timeout_s`` seconds.

        Raises:
            QueryRefused: it is not one SELECT, it failed, or it took too long or too much memory.
        """
        import duckdb

        started = time.perf_counter_ns()
        with self._lock:
            self._check(text)
            with _Watchdog(self._connection, timeout_s, 2 * self._limit_bytes) as watchdog:
                try:
                    cursor = self._connection.execute(text)
                    description = cursor.description or []
                    rows = cursor.fetchmany(limit + 1)
                except duckdb.Error as error:
                    raise QueryRefused(watchdog.reason or one_line(str(error))) from None
                except RuntimeError as error:
                    # Fetching an interrupted result raises a bare RuntimeError.
                    raise QueryRefused(watchdog.reason or one_line(str(error))) from None
        return QueryResult(
            columns=tuple(str(column[0]) for column in description),
            types=tuple(str(column[1]) for column in description),
            rows=rows[:limit],
            truncated=len(rows) > limit,
            duration_ns=time.perf_counter_ns() - started,
        )

    def arrow(self, text: str, *, timeout_s: float) -> pa.Table:
        """Run a person's query, as ``select`` does, and return all its rows as an Arrow table.

        Raises:
            QueryRefused: it is not one SELECT, it failed, or it took too long or too much memory.
        """
        import duckdb

        with self._lock:
            self._check(text)
            with _Watchdog(self._connection, timeout_s, 2 * self._limit_bytes) as watchdog:
                try:
                    return self._connection.sql(text).to_arrow_table()
                except (duckdb.Error, RuntimeError) as error:
                    raise QueryRefused(watchdog.reason or one_line(str(error))) from None

    def _check(self, text: str) -> None:
        import duckdb

        try:
            statements = self._connection.extract_statements(text)
        except (duckdb.Error, RuntimeError, UnicodeError) as error:
            raise QueryRefused(one_line(str(error))) from None
        if not statements:
            raise QueryRefused("the query is empty: give one SELECT statement")
        if len(statements) > 1:
            raise QueryRefused(f"one SELECT statement at a time, not {len(statements)}")
        kind = statements[0].type
        if kind != duckdb.StatementType.SELECT:
            name = str(kind).rpartition(".")[2]
            raise QueryRefused(f"only SELECT and WITH read a trace; this is {name}")
        forbidden = _FORBIDDEN.search(text)
        if forbidden:
            name = forbidden.group(0).rstrip("( \t\r\n")
            raise QueryRefused(f"the function {name} is not available on a trace")


class _Watchdog:
    """Interrupts a query that runs too long, or makes the process grow too much."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, timeout_s: float, growth_bytes: int
    ) -> None:
        self.reason = ""
        self._connection = connection
        self._timeout_s = timeout_s
        self._growth_bytes = growth_bytes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tracelens-query", daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        ceiling = resident_bytes() + self._growth_bytes
        while not self._done.wait(_WATCH_INTERVAL_S):
            if time.monotonic() > deadline:
                self.reason = (
                    f"stopped after {self._timeout_s:g} s: narrow the query or raise the timeout"
                )
            elif resident_bytes() > ceiling:
                self.reason = "stopped: the query needs too much memory; select less"
            if self.reason:
                self._connection.interrupt()


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
