"""Reads the sqlite file that Nsight Systems exports (``nsys export --type sqlite``).

Tables are made by Nsight only where they have rows, and columns differ by version: what is not
there reads as nothing. The file is opened read-only, and only plain tables of it are read.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tracelens.errors import TraceError

HEADER = b"SQLite format 3\0"
_META = ("META_DATA_EXPORT", "EXPORT_META_DATA")
"""Where the export describes itself: since 2023, and before."""
_BLOCK = 4096
_MAX_VALUE_BYTES = 16 << 20
_MAX_NAME = 1 << 16
"""Of a value that a column could make up without end, and of a name of a row."""
_TOLD = 8
_PID, _TID = 0xFFFFFF, 0xFFFFFF

BAD_SQLITE = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite raises for a damaged file; the second where its message quotes damaged bytes."""

Row = tuple[Any, ...]
"""sqlite gives a column's values whatever type each was written with."""


def pid_of(global_id: int) -> int:
    """Return the process of a serialized process or thread id.

    Examples:
        >>> pid_of(302119224788637), tid_of(302119224788637)
        (1230493, 1230493)
    """
    return (global_id >> 24) & _PID


def tid_of(global_id: int) -> int:
    """Return the thread of a serialized thread id."""
    return global_id & _TID


class Database:
    """One export.

    Args:
        path: the file.
        problems: told what is damaged.

    Raises:
        TraceError: it is no sqlite file, or not one of Nsight Systems.
    """

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self._problems = problems
        try:
            # "immutable" keeps sqlite from making files beside it.
            uri = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
            self._connection = sqlite3.connect(uri, uri=True)
            self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            self._connection.execute("PRAGMA trusted_schema=OFF")
            if sys.version_info >= (3, 11):
                self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
            self._columns = self._schema()
        except BAD_SQLITE as error:
            raise TraceError(f"{path}: not a readable sqlite file: {error}") from None
        if not is_nsight(self._columns):
            self.close()
            raise TraceError(f"{path}: a sqlite file, but not an export of Nsight Systems")

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    def has(self, table: str) -> bool:
        """Tell whether there is a table."""
        return table in self._columns

    def rows(
        self,
        table: str,
        columns: tuple[str, ...],
        *,
        order: str = "",
        where: str = "",
        distinct: bool = False,
    ) -> Iterator[Row]:
        """Yield rows of a table; a column that it has not reads as ``None``.

        Args:
            table: its name.
            columns: their names; ``name:column`` is the text that a column of ids stands for.
            order: a column to sort by.
            where: a condition on the table's own columns.
            distinct: leave out rows that are equal to another.
        """
        if table not in self._columns:
            return
        own = self._columns[table]
        chosen, joins = [], []
        for number, column in enumerate(columns):
            if column.startswith("name:"):
                name = column.removeprefix("name:")
                if name in own and "StringIds" in self._columns:
                    chosen.append(f"substr(s{number}.value, 1, {_MAX_NAME})")
                    joins.append(f'LEFT JOIN StringIds s{number} ON s{number}.id = t."{name}"')
                else:
                    chosen.append("NULL")
            else:
                chosen.append(f't."{column}"' if column in own else "NULL")
        select = "SELECT DISTINCT" if distinct else "SELECT"
        text = f'{select} {", ".join(chosen)} FROM "{table}" t {" ".join(joins)}'
        text += f" WHERE {where}" if where else ""
        text += f' ORDER BY t."{order}"' if order in own else ""
        try:
            with closing(self._connection.execute(text)) as cursor:
                while block := cursor.fetchmany(_BLOCK):
                    yield from block
        except BAD_SQLITE as error:
            self._tell(f"{self.path.name}: table {table} is damaged, its rest is left out: {error}")

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        if table not in self._columns:
            return 0
        try:
            found = self._connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()
        except BAD_SQLITE:
            return 0
        return int(found[0])

    def about(self) -> dict[str, str]:
        """Return what the export says of itself: ``EXPORT_PRODUCT_VERSION`` ..."""
        return {
            str(name): str(value)
            for table in _META
            for name, value in self.rows(table, ("name", "value"))
        }

    def epoch_unix_ns(self) -> int:
        """Return the Unix time at which its times start, 0 where it is not told."""
        for row in self.rows("TARGET_INFO_SESSION_START_TIME", ("utcEpochNs",)):
            if isinstance(row[0], int) and row[0] > 0:
                return row[0]
        return 0

    def host(self) -> str:
        """Return the name of the machine that was profiled, empty where it is not told."""
        for name, value in self.rows("TARGET_INFO_SYSTEM_ENV", ("name", "value")):
            if name == "Hostname":
                return str(value)
        return ""

    def _schema(self) -> dict[str, frozenset[str]]:
        found = {}
        listed = self._connection.execute("SELECT name, sql FROM sqlite_master WHERE type='table'")
        for name, sql in listed.fetchall():
            # A virtual table would run code of a module of sqlite's.
            if isinstance(name, str) and '"' not in name and "VIRTUAL" not in str(sql)[:32].upper():
                info = self._connection.execute(f'PRAGMA table_info("{name}")').fetchall()
                found[name] = frozenset(str(each[1]) for each in info)
        return found

    def _tell(self, line: str) -> None:
        if len(self._problems) < _TOLD:
            self._problems.append(line)


def is_nsight(tables: dict[str, frozenset[str]] | frozenset[str]) -> bool:
    """Tell whether tables are those of an export of Nsight Systems."""
    if "StringIds" not in tables:
        return False
    return any(each in tables for each in _META) or any(
        each.startswith(("CUPTI_ACTIVITY_KIND_", "NVTX_EVENTS", "TARGET_INFO_")) for each in tables
    )
