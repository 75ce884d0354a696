"""The SQL tables and views of a trace: generated from the format's own column list.

A column that a file lacks reads as NULL, one that this version does not know is left out, so
that traces of any minor version can be queried together. The four derived views are the
contract with people who write queries: ``ops_aligned``, ``op_full``, ``kernel_ops``, ``timeline``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from tracelens.storage.segment_files import SegmentFile
from tracelens.storage.segment_table import SQL_TYPES, scan
from tracelens.storage.tables import SHARD_TABLES, TABLES

DERIVED_VIEWS = {
    "ops_aligned": """
        SELECT o.*, o.start_ns + s.clock_offset_ns AS aligned_start_ns
        FROM ops AS o JOIN shards AS s USING (shard)""",
    "op_full": """
        SELECT o.*, t.role, t.slot, t.value_id, t.dtype AS tensor_dtype, t.shape AS tensor_shape,
               t.device AS tensor_device, t.numel AS tensor_numel, t.nan_count AS tensor_nan_count,
               t.inf_count AS tensor_inf_count, t.neginf_count AS tensor_neginf_count,
               t.vmin AS tensor_vmin, t.vmax AS tensor_vmax, t.mean AS tensor_mean,
               t.std AS tensor_std, t.l2 AS tensor_l2, t.first_bad
        FROM ops AS o LEFT JOIN stats AS t ON t.shard = o.shard AND t.op_id = o.op_id""",
    "kernel_ops": """
        SELECT k.*, o.name AS op_name, o.module, o.phase, o.file, o.line,
               o.start_ns AS op_start_ns, o.duration_ns AS op_duration_ns
        FROM kernels AS k LEFT JOIN ops AS o ON o.shard = k.shard AND o.op_id = k.op_id""",
    "timeline": """
        SELECT t.shard, t.rank, t.track, t.kind, t.name, t.step, t.id,
               t.start_ns + s.clock_offset_ns AS start_ns, t.duration_ns
        FROM (
            SELECT shard, rank, 'thread ' || tid AS track, phase AS kind, name, step,
                   op_id AS id, start_ns, duration_ns FROM ops
            UNION ALL
            SELECT shard, rank, 'device ' || device || ' stream ' || stream, kind, name, step,
                   kern_id, start_ns, duration_ns FROM kernels
            UNION ALL
            SELECT shard, rank, 'steps', 'step', 'step ' || step, step,
                   step, start_ns, duration_ns FROM steps
        ) AS t JOIN shards AS s USING (shard)""",
}


def table_view(
    table: str, files: Sequence[SegmentFile], present: Collection[str] | None, frames: Sequence[str]
) -> str:
    """Return the ``CREATE VIEW`` of one table.

    Args:
        table: name of one of ``SHARD_TABLES``.
        files: its segments in all shards.
        present: names of the columns found in the files, ``None`` for all.
        frames: names of in-memory tables of the same rows, with a column ``shard``.
    """
    parts = []
    if files:
        columns = ", ".join(
            f'"{column.name}"::{SQL_TYPES[column.type]} AS "{column.name}"'
            if present is None or column.name in present
            else f'NULL::{SQL_TYPES[column.type]} AS "{column.name}"'
            for column in TABLES[table]
        )
        parts.append(f"SELECT shard, {columns} FROM {scan(files, hive=True)}")
    for frame in frames:
        columns = ", ".join(
            f'"{column.name}"::{SQL_TYPES[column.type]} AS "{column.name}"'
            for column in TABLES[table]
        )
        parts.append(f'SELECT shard::VARCHAR AS shard, {columns} FROM "{frame}"')
    if not parts:
        columns = ", ".join(
            f'NULL::{SQL_TYPES[column.type]} AS "{column.name}"' for column in TABLES[table]
        )
        parts.append(f"SELECT NULL::VARCHAR AS shard, {columns} WHERE false")
    return f'CREATE OR REPLACE VIEW "{table}" AS ' + " UNION ALL ".join(parts)


def create_table(table: str) -> str:
    """Return the ``CREATE TABLE`` of a run table (``shards``, ``segments``)."""
    columns = ", ".join(f'"{c.name}" {SQL_TYPES[c.type]}' for c in TABLES[table])
    return f'CREATE OR REPLACE TABLE "{table}" ({columns})'


def derived_views() -> Iterator[str]:
    """Yield the statements that make the derived views; the tables must exist."""
    for name, body in DERIVED_VIEWS.items():
        yield f'CREATE OR REPLACE VIEW "{name}" AS {body}'


def names() -> tuple[str, ...]:
    """Return every name that a query can select from."""
    return (*SHARD_TABLES, "shards", "segments", *DERIVED_VIEWS)
