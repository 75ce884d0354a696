"""What runs the queries: DuckDB in this process, or Apache Spark for a run of many machines.

Every query of `tracelens.engines.queries` is written once, in SQL that both read the same way;
``tests/spark`` holds them to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from tracelens.errors import ConfigError

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader
    from tracelens.storage.sql import QueryResult, Row

ENGINES = ("duckdb", "spark")

DEFAULT_MASTER = "local[2]"
"""Spark inside this process, two tasks at a time."""


class Engine(Protocol):
    """Runs SQL over the tables and views of one trace.

    Attributes:
        name: ``"duckdb"`` or ``"spark"``.
        reader: the trace itself.
        problems: what this engine leaves out of its answers, one line each.
    """

    name: str
    reader: TraceReader
    problems: list[str]

    def rows(self, sql: str) -> list[Row]:
        """Run one of our own queries and return its rows.

        Raises:
            TraceLensError: it failed; one line.
        """

    def select(self, text: str, *, limit: int, timeout_s: float) -> QueryResult:
        """Run a person's SELECT, at most so many rows and seconds.

        Raises:
            QueryRefused: it is not one SELECT on the trace, it failed, or it took too long.
        """

    def close(self) -> None:
        """Give back memory and processes; idempotent."""


class OpenEngine:
    """An engine for the length of a ``with`` block; the trace is closed with it."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make

    def __enter__(self) -> Engine:
        self._engine = self._make()
        return self._engine

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.close()


def open_engine(
    path: str | os.PathLike[str], name: str = "duckdb", *, master: str | None = None
) -> OpenEngine:
    """Open a trace under an engine; use the result in a ``with`` statement.

    Args:
        path: the trace.
        name: ``"duckdb"`` or ``"spark"``.
        master: Spark's master URL, ``local[2]`` by default.

    Raises:
        ConfigError: there is no such engine, or a master was named for one that has none.

    Examples:
        >>> open_engine("run.tltrace", "flink")
        Traceback (most recent call last):
        tracelens.errors.ConfigError: no engine 'flink': choose duckdb or spark
    """
    if name not in ENGINES:
        raise ConfigError(f"no engine {name!r}: choose {' or '.join(ENGINES)}")
    if master is not None and name != "spark":
        raise ConfigError("--master is Spark's: use it with --engine spark")

    def make() -> Engine:
        if name == "spark":
            from tracelens.engines.spark_engine import SparkEngine

            return SparkEngine(path, master=master or DEFAULT_MASTER)
        from tracelens.engines.duckdb_engine import DuckDBEngine
        from tracelens.storage.reader import open_trace

        return DuckDBEngine(open_trace(path))

    return OpenEngine(make)


def add_engine_arguments(parser: Any) -> None:
    """Declare ``--engine`` and ``--master`` of a verb."""
    parser.add_argument("--engine", choices=ENGINES, default="duckdb", help="what runs the queries")
    parser.add_argument(
        "--master", metavar="URL", help=f"Spark's master URL (default: {DEFAULT_MASTER})"
    )
