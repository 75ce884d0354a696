"""Reading Parquet files with pyarrow, every page's checksum verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tracelens.storage.tables import TABLES, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from tracelens.storage.segment_files import SegmentFile

MAX_TABLE_BYTES = 512 << 20
"""A file read whole that unpacks to more is a bomb, not data."""

BATCH_ROWS = 8 * 1024


class DamagedSegmentError(Exception):
    """A Parquet file cannot be read, or is not what its name and manifest say."""


def iter_batches(
    file: SegmentFile, columns: Sequence[str] | None = None, *, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a segment's rows, ``batch_rows`` at a time.

    Args:
        file: the segment.
        columns: columns wanted, all of the table's if ``None``; one that the file lacks is NULL.
        batch_rows: rows of a batch at most.

    Yields:
        Batches of exactly these columns, in the types of ``tables.arrow_schema``.

    Raises:
        DamagedSegmentError: a checksum does not match, the file is not Parquet, or its number of
            rows or a column's type is not what it should be.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [column.name for column in TABLES[file.table]] if columns is None else list(columns)
    strict = arrow_schema(file.table)
    schema = pa.schema([strict.field(name).with_nullable(True) for name in wanted])
    required = {name for name in wanted if not strict.field(name).nullable}
    try:
        with pq.ParquetFile(file.path, page_checksum_verification=True) as parquet:
            if parquet.metadata.num_rows != file.rows:
                raise DamagedSegmentError(f"has {parquet.metadata.num_rows} rows, not {file.rows}")
            present = set(parquet.schema_arrow.names)
            if required - present:
                raise DamagedSegmentError(f"lacks the column {min(required - present)}")
            names = [name for name in wanted if name in present]
            for batch in parquet.iter_batches(batch_rows, columns=names, use_threads=False):
                for name in required:
                    if batch.column(name).null_count:
                        raise DamagedSegmentError(f"its column {name} has NULLs")
                yield _conform(batch, schema, present)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DamagedSegmentError(text[:200]) from None


def read_file(
    file: SegmentFile, columns: Sequence[str] | None = None, *, batch_rows: int = BATCH_ROWS
) -> pa.Table:
    """Read one segment whole.

    Args:
        file: the segment.
        columns: as for ``iter_batches``.
        batch_rows: rows decoded at a time.

    Raises:
        DamagedSegmentError: as ``iter_batches``, or it unpacks to more than ``MAX_TABLE_BYTES``.
    """
    import pyarrow as pa

    batches, size = [], 0
    for batch in iter_batches(file, columns, batch_rows=batch_rows):
        batches.append(batch)
        size += batch.nbytes
        if size > MAX_TABLE_BYTES:
            raise DamagedSegmentError(f"unpacks to more than {MAX_TABLE_BYTES >> 20} MiB")
    if batches:
        return pa.Table.from_batches(batches).unify_dictionaries()
    return empty_table(file.table, columns)


def empty_table(table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a table of these columns without rows."""
    import pyarrow as pa

    schema = arrow_schema(table)
    names = schema.names if columns is None else columns
    return pa.schema([schema.field(name).with_nullable(True) for name in names]).empty_table()


def _conform(batch: pa.RecordBatch, schema: pa.Schema, present: set[str]) -> pa.RecordBatch:
    import pyarrow as pa

    arrays = []
    for field in schema:
        if field.name not in present:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(field.name)
        arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
