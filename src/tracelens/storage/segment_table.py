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

    A file is checked when a query first needs it: its checksum, its number of rows and the types
    of its columns. One that fails is handed to ``quarantine`` and left out from then on.
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
        self._present: dict[SegmentFile, frozenset[str]] = {}

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
        if not files:
            return []
        tail = "" if limit is None else f" LIMIT {int(limit)}"
        sql = f"SELECT {self._columns(columns, files)} FROM {scan(files)} WHERE {where}"
        return self._database().rows(f"{sql} ORDER BY op_id{tail}", parameters)

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
        present = frozenset().union(*(self._present[file] for file in files))
        types = {column.name: SQL_TYPES[column.type] for column in TABLES[self._table]}
        return ", ".join(
            f'"{name}"' if name in present else f'NULL::{types[name]} AS "{name}"'
            for name in columns
        )

    def _sound(self, file: SegmentFile) -> bool:
        if file in self._present:
            return True
        try:
            if file.crc32 is not None and file_crc32(file.path) != file.crc32:
                raise DamagedSegmentError("its checksum does not match: bits have changed")
            self._present[file] = described(self._database(), [file])
        except (DamagedSegmentError, TraceError, OSError) as error:
            self.files.remove(file)
            self._quarantine(file, str(error))
            return False
        return True


def described(database: Database, files: Sequence[SegmentFile]) -> frozenset[str]:
    """Return the names of the known columns in files of one table.

    Raises:
        TraceError: DuckDB cannot read one of them.
        DamagedSegmentError: a column has another type than the format's, or there are more or
            fewer rows than the manifest says.
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
    paths = ", ".join(quote_path(file.path) for file in files)
    (counted,) = database.rows(f"SELECT sum(num_rows) FROM parquet_file_metadata([{paths}])")
    expected = sum(file.rows for file in files)
    if int(counted[0] or 0) != expected:
        raise DamagedSegmentError(f"has {counted[0]} rows, not {expected}")
    return frozenset(columns) & frozenset(known)


def scan(files: Sequence[SegmentFile], *, hive: bool = False) -> str:
    """Return the ``read_parquet`` call over files, whose paths were checked on opening.

    Args:
        files: the segments.
        hive: also give the column ``shard``, from the directory's name.
    """
    paths = ", ".join(quote_path(file.path) for file in files)
    shard = "true, hive_types = {'shard': VARCHAR}" if hive else "false"
    return f"read_parquet([{paths}], union_by_name = true, hive_partitioning = {shard})"
