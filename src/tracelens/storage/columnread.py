"""Whole columns of a table as Arrow: how analyses read a trace.

A column is read from the files that can hold the wanted steps, checked as every other read is; what
is not sealed yet is taken from the ring. No row becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tracelens.errors import ConfigError
from tracelens.storage.parquet_files import DamagedSegmentError, empty_table, read_file
from tracelens.storage.tables import SHARD_TABLES, TABLES

if TYPE_CHECKING:
    import pyarrow as pa

    from tracelens.storage.shardreader import ShardReader

BATCH_ROWS = 1 << 16
"""Rows decoded at a time: each batch repeats its dictionary, so that small ones cost more."""

_PROFILE_TABLES = ("kernels", "spans")

Steps = tuple[int | None, int | None]
"""First step and the one after the last; ``None`` where open."""


def read_columns(
    readers: Sequence[ShardReader],
    table: str,
    names: Sequence[str],
    *,
    rank: int | None = None,
    steps: Steps | None = None,
) -> pa.Table:
    """Return columns of a table; see ``TraceReader.columns``.

    Raises:
        ConfigError: there is no such table or column.
    """
    import pyarrow as pa

    _check(table, names)
    first, end = steps or (None, None)
    bounded = first is not None or end is not None
    wanted = [*dict.fromkeys([*names, "step"])] if bounded else list(dict.fromkeys(names))
    chosen = readers if rank is None else shards_of(readers, rank)[-1:]
    parts = [part for reader in chosen for part in _parts(reader, table, wanted, first, end)]
    if not parts:
        return empty_table(table, names)
    whole = pa.concat_tables(parts).unify_dictionaries()
    return (_of_steps(whole, first, end) if bounded else whole).select(list(names))


def shards_of(readers: Sequence[ShardReader], rank: int) -> list[ShardReader]:
    """Return a rank's shards, the one that speaks for it last.

    Ids are unique in a shard only, so two attempts are never mixed: the last attempt that holds
    device work or host spans is taken, else the last one that holds ops.
    """
    found = [reader for reader in readers if reader.shard.state.rank == rank]

    def worth(reader: ShardReader) -> tuple[bool, bool, bool, int]:
        state, segments = reader.shard.state, reader.shard.segments
        profiled = any(segments.get(table) for table in _PROFILE_TABLES)
        return profiled, reader.has_ops(), "-d" not in reader.shard.name, state.attempt

    return sorted(found, key=worth)


def _check(table: str, names: Sequence[str]) -> None:
    if table not in SHARD_TABLES:
        raise ConfigError(f"no such table: {table!r}; choose from {', '.join(SHARD_TABLES)}")
    known = {column.name for column in TABLES[table]}
    for name in names:
        if name not in known:
            raise ConfigError(f"the table {table} has no column {name!r}")


def _parts(
    reader: ShardReader, table: str, names: Sequence[str], first: int | None, end: int | None
) -> Iterator[pa.Table]:
    last = None if end is None else end - 1
    for file in sorted(reader.segments(table), key=lambda f: (f.op_lo or 0, f.path.name)):
        if not file.may_hold(step_lo=first, step_hi=last):
            continue
        try:
            yield read_file(file, names, batch_rows=BATCH_ROWS)
        except DamagedSegmentError as error:
            reader.quarantine(file, str(error))
    if reader.live() is not None or reader.shard.events is not None:
        from tracelens.storage.frames import tail_tables

        frame = tail_tables(reader).get(table)
        if frame is not None:
            like = empty_table(table, names).schema
            yield frame.select(list(names)).cast(like)


def _of_steps(table: pa.Table, first: int | None, end: int | None) -> pa.Table:
    import pyarrow.compute as pc

    step = table["step"]
    if first is not None:
        table = table.filter(pc.greater_equal(step, first))
        step = table["step"]
    return table if end is None else table.filter(pc.less(step, end))
