"""Export of a trace's tables as Parquet: a file for each, of all ranks or of one.

The files of a trace are Parquet as well, many and checked by the trace's own manifest; these are
whole, with the names and types of ``docs/format.md``, for pandas, polars, Spark or a database.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens.convert._output import new_directory, new_file
from tracelens.errors import ConfigError
from tracelens.storage.tables import SHARD_TABLES, TABLES, arrow_schema

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

_ENDING = ".parquet"
_ROW_GROUP_ROWS = 1 << 17


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    table: str | None = None,
    rank: int | None = None,
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
) -> int:
    """Write tables as Parquet files.

    Args:
        reader: an open trace.
        out_path: a folder, in which each table that has rows becomes ``<table>.parquet``; or a
            file, if it ends so or a table is named.
        table: only this table (``ops`` for a file, all for a folder).
        rank: rows of this rank only.
        first_step: leave out earlier steps, of the tables that tell one.
        last_step: leave out later steps.
        force: replace what is there.

    Returns:
        How many rows were written.

    Raises:
        ConfigError: there is no such table or rank, or ``out_path`` exists.
        TraceLensError: it cannot be written.
    """
    if table is not None and table not in SHARD_TABLES:
        raise ConfigError(f"no table {table!r}: choose from {', '.join(SHARD_TABLES)}")
    if rank is not None and rank not in reader.ranks():
        raise ConfigError(f"no rank {rank}: the trace has {reader.ranks()}")
    last = None if last_step is None else last_step + 1
    if table is not None or Path(out_path).suffix == _ENDING:
        with new_file(out_path, force=force) as temporary:
            return _write(reader, table or "ops", temporary, rank, (first_step, last))
    with new_directory(out_path, force=force) as folder:
        rows = 0
        for name in SHARD_TABLES:
            path = folder / f"{name}{_ENDING}"
            written = _write(reader, name, path, rank, (first_step, last))
            if not written:
                path.unlink()
            rows += written
        return rows


def _write(
    reader: TraceReader,
    table: str,
    path: Path,
    rank: int | None,
    steps: tuple[int | None, int | None],
) -> int:
    import pyarrow.parquet as pq

    names = [column.name for column in TABLES[table]]
    of_steps = steps if "step" in names else None
    rows = 0
    schema = arrow_schema(table)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in reader.column_parts(table, names, rank=rank, steps=of_steps):
            writer.write_table(part.cast(schema), row_group_size=_ROW_GROUP_ROWS)
            rows += part.num_rows
    return rows
