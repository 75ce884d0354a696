"""The SQL face of a trace: one DuckDB connection, opened late, over all sound segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tracelens.errors import ConfigError, TraceError
from tracelens.storage import views
from tracelens.storage.catalog import Catalog
from tracelens.storage.parquet_files import BATCH_ROWS, DamagedSegmentError, iter_batches
from tracelens.storage.segment_table import SQL_TYPES, described
from tracelens.storage.sql import Database, Row
from tracelens.storage.tables import SHARD_TABLES, TABLES

if TYPE_CHECKING:
    import pyarrow as pa

    from tracelens.storage.shardreader import ShardReader

_GROUP_TYPES = frozenset({"int32", "int64", "string", "dictionary", "bool"})
_NUMBERS = frozenset({"int32", "int64", "float32", "float64"})


class SqlTables:
    """Opens the connection when the first query needs it, and the views when the first names one.

    Attributes:
        readers: the trace's shards, set by the reader that owns both.
    """

    def __init__(self, catalog: Catalog, memory_limit_bytes: int) -> None:
        self.readers: list[ShardReader] = []
        self._catalog = catalog
        self._memory_limit_bytes = memory_limit_bytes
        self._database: Database | None = None
        self._has_views = False

    def database(self) -> Database:
        """Return the connection, without views: for queries that name their files."""
        if self._database is None:
            files = [
                file.path
                for reader in self.readers
                for of_table in reader.shard.segments.values()
                for file in of_table
            ]
            self._database = Database(files, memory_limit_bytes=self._memory_limit_bytes)
        return self._database

    def database_with_views(self) -> Database:
        """Return the connection with every table and view of ``views.names()``.

        Raises:
            TraceError: DuckDB cannot make sense of the segments.
        """
        database = self.database()
        if not self._has_views:
            frames = self._tail_frames()
            for table in SHARD_TABLES:
                self._make_view(database, table, frames.get(table, []))
            for table in ("shards", "segments"):
                self._fill(database, table)
            for statement in views.derived_views():
                database.rows(statement)
            self._has_views = True
        return database

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._database is not None:
            self._database.close()
            self._database = None
            self._has_views = False

    def group(self, by: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """Count and sum ops by columns; see ``TraceReader.group``."""
        for name in by:
            _check_column(name, _GROUP_TYPES)
        keys = ", ".join(f'"{name}"' for name in by)
        rows = self.database_with_views().rows(
            f"SELECT {keys}, count(*), sum(duration_ns)::BIGINT, "
            "count(*) FILTER (WHERE nan_count > 0 OR inf_count > 0) "
            f"FROM ops GROUP BY {keys} ORDER BY count(*) DESC, {keys} LIMIT {int(limit)}"
        )
        names = (*by, "n_ops", "duration_ns", "nan_ops")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def top(self, n: int, by: str) -> list[dict[str, Any]]:
        """Return the op names with the largest total; see ``TraceReader.top``."""
        _check_column(by, _NUMBERS)
        rows = self.database_with_views().rows(
            f'SELECT name, sum("{by}") AS total, count(*) FROM ops GROUP BY name '
            f"ORDER BY total DESC NULLS LAST, name LIMIT {int(n)}"
        )
        return [dict(zip(("name", by, "n_ops"), row, strict=True)) for row in rows]

    def scan(
        self, table: str, columns: Sequence[str], first_step: int | None, last_step: int | None
    ) -> Iterator[list[Row]]:
        """Yield a table's rows in blocks; see ``TraceReader.scan``."""
        known = {column.name for column in TABLES[table]}
        for name in columns:
            if name not in known:
                raise ConfigError(f"the table {table} has no column {name!r}")
        for reader in self.readers:
            for file in sorted(reader.segments(table), key=lambda f: (f.op_lo or 0, f.path.name)):
                if file.may_hold(step_lo=first_step, step_hi=last_step):
                    try:
                        for batch in iter_batches(file, columns):
                            yield _rows(batch, columns)
                    except DamagedSegmentError as error:
                        reader.quarantine(file, str(error))
            frame = self._frames_of(reader).get(table)
            if frame is not None:
                for batch in frame.select(list(columns)).to_batches(max_chunksize=BATCH_ROWS):
                    yield _rows(batch, columns)

    def _make_view(self, database: Database, table: str, frames: Sequence[str]) -> None:
        files = [file for reader in self.readers for file in reader.segments(table)]
        try:
            database.rows(views.table_view(table, files, None, frames))
            return
        except TraceError:
            pass  # one of the files is of an older minor version, or damaged
        for reader in self.readers:
            for file in reader.segments(table):
                try:
                    described(database, [file])
                except (TraceError, DamagedSegmentError) as error:
                    reader.quarantine(file, str(error))
        files = [file for reader in self.readers for file in reader.segments(table)]
        database.rows(views.table_view(table, files, described(database, files), frames))

    def _tail_frames(self) -> dict[str, list[str]]:
        """Register the unsealed rows of live and killed shards; returns names by table."""
        names: dict[str, list[str]] = {}
        for number, reader in enumerate(self.readers):
            for table, frame in self._frames_of(reader).items():
                name = f"_tail_{table}_{number}"
                self.database().register(name, frame)
                names.setdefault(table, []).append(name)
        return names

    def _frames_of(self, reader: ShardReader) -> dict[str, pa.Table]:
        live = reader.live()
        if live is None and reader.shard.events is None:
            return {}
        from tracelens.storage.frames import tail_tables

        return tail_tables(reader)

    def _fill(self, database: Database, table: str) -> None:
        """Make ``shards`` and ``segments`` from the shards' manifests."""
        columns = [column.name for column in TABLES[table]]
        rows: list[list[Any]] = []
        for shard in self._catalog.shards:
            if table == "shards":
                values = asdict(shard.state)
                rows.append([values.get(name) for name in columns])
            else:
                for segment in shard.state.segments:
                    entry = {"shard": shard.name, **asdict(segment)}
                    rows.append([entry.get(name) for name in columns])
        database.rows(views.create_table(table))
        if rows:
            lists = ", ".join(f"unnest(?::{SQL_TYPES[column.type]}[])" for column in TABLES[table])
            values_by_column = [list(values) for values in zip(*rows, strict=True)]
            database.rows(f'INSERT INTO "{table}" SELECT {lists}', values_by_column)


def _check_column(name: str, types: frozenset[str]) -> None:
    known = [column.name for column in TABLES["ops"] if column.type in types]
    if name not in known:
        raise ConfigError(f"no such column of ops: {name!r}; choose from {', '.join(known)}")


def _rows(batch: pa.RecordBatch, columns: Sequence[str]) -> list[Row]:
    values = [batch.column(name).to_pylist() for name in columns]
    return list(zip(*values, strict=True))
