"""One table of one shard through DuckDB: sound files only, columns they lack as NULL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracelens.errors import TraceError
from tracelens.storage.checksum import file_crc32
from tracelens.storage.parquet_files import DamagedSegmentError
from tracelens.storage.segment_files import SegmentFile
from tracelens.storage.sql import Database, Row, quote_path
from tracelens.storage.tables import TABLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SQL_TYPES = {
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "string": "VARCHAR",
    "dictionary": "VARCHAR",
    "list<int64>": "BIGINT[]",
}
"""Column types of ``storage.tables`` -> DuckDB's names of them."""


class SegmentTable:
    """Queries over some of a shard's segments of one table.

    A file's checksum is compared when a query first needs it, its columns when a query fails. One
    that is damaged is handed to ``quarantine`` and left out from then on.
    """

    def __init__(
        self,
        table: str,
        files: Sequence[SegmentFile],
        database: Callable[[], Database],
        quarantine: Callable[[SegmentFile, str], None],
    ) -> None:
        self.files = sorted(files, key=lambda file: (file.op_lo or 0, file.path.name))
        self._table = table
        self._database = database
        self._quarantine = quarantine
        self._types = {column.name: SQL_TYPES[column.type] for column in TABLES[table]}
        # Checked files -> their columns, None as long as nobody had to ask.
        self._present: dict[SegmentFile, frozenset[str] | None] = {}

    def pick(self, **bounds: int | None) -> list[SegmentFile]:
        """Return the sound files that may hold rows within bounds (``SegmentFile.may_hold``)."""
        return [file for file in list(self.files) if file.may_hold(**bounds) and self._sound(file)]

    def sound(self, files: Sequence[SegmentFile]) -> list[SegmentFile]:
        """Return those of some files that are sound."""
        return [file for file in files if self._sound(file)]

    def rows(
        self,
        columns: Sequence[str],
        files: Sequence[SegmentFile],
        where: str = "true",
        parameters: Sequence[Any] = (),
        limit: int | None = None,
    ) -> list[Row]:
        """Return rows of some files, ascending by op id.

        Args:
            columns: names of columns of the table.
            files: from ``pick``.
            where: a condition of our own making.
            parameters: values of the condition's question marks.
            limit: rows to return at most.
        """
        while files:
            tail = "" if limit is None else f" LIMIT {int(limit)}"
            sql = f"SELECT {self._columns(columns, files)} FROM {scan(files)} WHERE {where}"
            try:
                types, rows = self._database().table(f"{sql} ORDER BY op_id{tail}", parameters)
            except TraceError:
                # Asking each file is slow, so only now: one is damaged, or lacks a column.
                if not self._examine(files):
                    raise
                files = [file for file in files if file in self._present]
                continue
            if types == tuple(self._types[name] for name in columns) or not self._examine(files):
                return rows
            files = [file for file in files if file in self._present]
        return []

    def op_ids(
        self, files: Sequence[SegmentFile], where: str = "true", parameters: Sequence[Any] = ()
    ) -> NDArray[np.int64]:
        """Return the op ids in some files, ascending."""
        import numpy as np

        if not files:
            return np.empty(0, dtype=np.int64)
        sql = f"SELECT op_id FROM {scan(files)} WHERE {where}"
        found = self._database().integers(sql, parameters)
        found.sort()
        return found

    def _columns(self, columns: Sequence[str], files: Sequence[SegmentFile]) -> str:
        everything = frozenset(self._types)
        present = frozenset().union(*(self._present.get(f) or everything for f in files))
        return ", ".join(
            f'"{name}"' if name in present else f'NULL::{self._types[name]} AS "{name}"'
            for name in columns
        )

    def _sound(self, file: SegmentFile) -> bool:
        """Check a file's checksum when it is first needed."""
        if file in self._present:
            return True
        try:
            if file.crc32 is not None and file_crc32(file.path) != file.crc32:
                raise DamagedSegmentError("its checksum does not match: bits have changed")
            self._present[file] = None
        except (DamagedSegmentError, OSError) as error:
            self.remove(file, str(error))
            return False
        return True

    def _examine(self, files: Sequence[SegmentFile]) -> bool:
        """Find out which columns each file has; return whether that was not known before."""
        news = False
        for file in files:
            if self._present.get(file) is None:
                news = True
                try:
                    self._present[file] = described(self._database(), [file])
                except (DamagedSegmentError, TraceError) as error:
                    self.remove(file, str(error))
        return news

    def remove(self, file: SegmentFile, reason: str) -> None:
        """Set a damaged file aside; doing it again does nothing."""
        self._present.pop(file, None)
        if file in self.files:
            self.files.remove(file)
            self._quarantine(file, reason)


def described(database: Database, files: Sequence[SegmentFile]) -> frozenset[str]:
    """Return the names of the known columns in files of one table.

    Raises:
        TraceError: DuckDB cannot read one of them.
        DamagedSegmentError: a column is missing or has another type than the format's.
    """
    if not files:
        return frozenset()
    shown = database.rows(f"DESCRIBE SELECT * FROM {scan(files)}")
    columns = {str(row[0]): str(row[1]) for row in shown}
    known = {column.name: SQL_TYPES[column.type] for column in TABLES[files[0].table]}
    for name, type_ in columns.items():
        if name in known and type_ != known[name]:
            raise DamagedSegmentError(f"its column {name} is {type_[:40]}, not {known[name]}")
    required = {column.name for column in TABLES[files[0].table] if not column.nullable}
    if required - columns.keys():
        raise DamagedSegmentError(f"lacks the column {min(required - columns.keys())}")
    return frozenset(columns) & frozenset(known)


def scan(files: Sequence[SegmentFile], *, hive: bool = False) -> str:
    """Return the ``read_parquet`` call over files, whose paths were checked on opening.

    Args:
        files: the segments.
        hive: also give the column ``shard``, from the directory's name.
    """
    paths = ", ".join(quote_path(file.path) for file in files)
    shard = "true, hive_types = {'shard': VARCHAR}" if hive else "false"
    union = "true" if len(files) > 1 else "false"
    return f"read_parquet([{paths}], union_by_name = {union}, hive_partitioning = {shard})"
