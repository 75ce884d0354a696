"""Parquet segments: written under a temporary name, then renamed, so that none is ever torn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tracelens.storage.arrays import constant
from tracelens.storage.checksum import file_crc32
from tracelens.storage.manifest import Segment
from tracelens.storage.tables import TABLES

ROW_GROUP_ROWS = 128 * 1024
_DELTA = frozenset(
    {"op_id", "step", "ord", "parent_id", "fwd_op_id", "start_ns", "duration_ns", "event_id"}
)
# Delta-encoded input ids take 2.4 bytes an op more than plain ones: they jump back and forth.
_DELTA_LISTS = frozenset({"out_ids"})
# Statistics let a reader skip row groups; of floats and texts they cost 25 % of the writing.
_NO_STATISTICS = frozenset({"vmin", "vmax", "mean", "std", "l2", "code", "function", "file"})


def write_options(table: str) -> dict[str, Any]:
    """Return the Parquet writer options of a table.

    zstd level 1 with delta encoding of ids and times gave 19 bytes an op at more than a
    million ops a second; page checksums let a reader tell a flipped bit from data.
    """
    columns = TABLES[table]
    paths = {c.name: f"{c.name}.list.element" if "list" in c.type else c.name for c in columns}
    delta = _DELTA | _DELTA_LISTS
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [c.name for c in columns if c.type == "dictionary"],
        "column_encoding": {
            path: "DELTA_BINARY_PACKED" for name, path in paths.items() if name in delta
        }
        or None,
        "write_statistics": [path for name, path in paths.items() if name not in _NO_STATISTICS],
        "write_page_checksum": True,
        "write_batch_size": ROW_GROUP_ROWS,
        "row_group_size": ROW_GROUP_ROWS,
    }


class SegmentStore:
    """Writes the segments of one shard."""

    def __init__(self, run_dir: Path, shard: str) -> None:
        self._run_dir = run_dir
        self._shard = shard
        self._names: set[str] = set()

    def adopt(self, segments: list[Segment]) -> None:
        """Take note of segments already listed, whose names must not be used again."""
        self._names.update(segment.file for segment in segments)

    def write(self, name: str, table: pa.Table, low: int, high: int) -> Segment:
        """Write one segment and return its zone map.

        Args:
            name: the table.
            table: its rows, with the schema of ``tables.arrow_schema(name)``.
            low: first id, for the file name.
            high: last id, for the file name.

        Raises:
            OSError: the disk is full; no partial file is left.
        """
        directory = self._run_dir / name / f"shard={self._shard}"
        directory.mkdir(parents=True, exist_ok=True)
        stem = f"{name}-{max(low, 0):012d}-{max(high, 0):012d}"
        file = f"{name}/shard={self._shard}/{stem}.parquet"
        again = 0
        while file in self._names:
            again += 1
            file = f"{name}/shard={self._shard}/{stem}-{again}.parquet"
        path = self._run_dir / file
        size = write_parquet(name, table, path)
        self._names.add(file)
        return Segment(name, file, table.num_rows, size, crc32=file_crc32(path), **_zone(table))


def write_parquet(name: str, table: pa.Table, path: Path) -> int:
    """Write a table under a temporary name and rename it; return the file's size.

    Raises:
        OSError: the disk is full or the directory cannot be written; no partial file is left.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        pq.write_table(table, temporary, **write_options(name))
        size = temporary.stat().st_size
        temporary.replace(path)
    except (OSError, pa.ArrowException) as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise
        raise OSError(f"{path}: {error}") from error
    return size


def _zone(table: pa.Table) -> dict[str, int | None]:
    """Return the smallest and largest ids, steps and times, and the count of bad rows."""
    zone: dict[str, int | None] = {}
    for prefix, column in (("op", "op_id"), ("step", "step"), ("t", "start_ns")):
        if column in table.column_names:
            bounds = pc.min_max(table[column]).as_py()
            zone[f"{prefix}_lo"], zone[f"{prefix}_hi"] = bounds["min"], bounds["max"]
    if "nan_count" in table.column_names:
        zero = constant(0, pa.int64(), 1)[0]
        bad = pc.or_kleene(
            pc.greater(table["nan_count"], zero), pc.greater(table["inf_count"], zero)
        )
        zone["nan_rows"] = pc.sum(bad).as_py() or 0
    return zone


def read_zone(path: Path) -> tuple[int, dict[str, int | None]]:
    """Return a segment's row count and zone map, from its own columns.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no Parquet file, or a damaged one.
    """
    wanted = ("op_id", "step", "start_ns", "nan_count", "inf_count")
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        names = [name for name in wanted if name in file.schema_arrow.names]
        table = file.read(columns=names)
        return file.metadata.num_rows, _zone(table)


def remove_leftovers(run_dir: Path) -> list[str]:
    """Delete ``.tmp-`` files that a killed writer left; return their paths in the trace."""
    found = leftovers(run_dir)
    for name in found:
        (run_dir / name).unlink(missing_ok=True)
    return found


def leftovers(run_dir: Path) -> list[str]:
    """Return the paths of ``.tmp-`` files in a trace, relative to it."""
    return sorted(
        os.path.relpath(path, run_dir)
        for pattern in (".tmp-*", "_shards/.tmp-*", "_live/.tmp-*", "*/shard=*/.tmp-*")
        for path in run_dir.glob(pattern)
    )
