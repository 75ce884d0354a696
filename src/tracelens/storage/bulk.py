"""Writes whole columns straight into segments: no ring, no Python loop over rows.

Importers, generated traces and what a profiler hands over in one piece go through here.

Examples:
    >>> import tempfile
    >>> from tracelens.loaded import load
    >>> directory = tempfile.TemporaryDirectory()
    >>> run = Path(directory.name) / "run.tltrace"
    >>> with BulkShard(run, rank=0) as shard:
    ...     _ = shard.write("kernels", {
    ...         "kern_id": np.arange(2), "step": np.zeros(2), "kind": Coded([0, 0], ["kernel"]),
    ...         "name": Coded([0, 1], ["gemm", "relu"]), "device": np.zeros(2),
    ...         "stream": np.full(2, 7), "start_ns": np.array([0, 50]),
    ...         "duration_ns": np.array([40, 10]),
    ...     })
    >>> load(run).sql("SELECT name, duration_ns FROM kernels ORDER BY start_ns")
    [('gemm', 40), ('relu', 10)]
    >>> directory.cleanup()
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from tracelens.storage.arrays import coded, constant, numbers
from tracelens.storage.columns import Coded, Masked
from tracelens.storage.eventlog import EventRows
from tracelens.storage.manifest import SHARDS_DIR, Segment, ShardState, write_manifest, write_shard
from tracelens.storage.manifest import new_manifest as _new_manifest
from tracelens.storage.rundir import CREATED_BY
from tracelens.storage.segments import SegmentStore
from tracelens.storage.summary import write_run_tables
from tracelens.storage.tables import TABLES, Column, arrow_schema
from tracelens.texts import printable

__all__ = ["SEGMENT_ROWS", "BulkShard", "Coded", "Masked", "arrow_table"]

SEGMENT_ROWS = 1 << 20
"""Rows of a segment at most: it bounds what a reader holds of one file."""

_MAX_HOST = 255
_IDS = {
    "ops": "op_id", "kernels": "kern_id", "spans": "span_id", "stats": "op_id",
    "collectives": "coll_id",
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {"step": -1, "kind": "op", "phase": "other", "tid": 0, "flags": 0}


class BulkShard:
    """One rank's shard, written as tables of columns. Not thread-safe.

    Args:
        run_dir: the trace; it and its manifest are made if they are missing.
        rank: the rank that the rows belong to.
        attempt: how often that rank was restarted.
        epoch_unix_ns: Unix time of time 0 of the trace, where the manifest is made here.
        world_size: ranks of the run, where the manifest is made here.
        framework: what ran.
        host: where it ran; this machine if empty.
        pid: process id of what ran.
        clock_offset_ns: what to add to its times to align them with rank 0.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int = 0,
        *,
        attempt: int = 0,
        epoch_unix_ns: int | None = None,
        world_size: int = 1,
        framework: str = "",
        host: str = "",
        pid: int = 0,
        clock_offset_ns: int = 0,
    ) -> None:
        epoch = time.time_ns() if epoch_unix_ns is None else epoch_unix_ns
        (run_dir / SHARDS_DIR).mkdir(parents=True, exist_ok=True)
        write_manifest(run_dir, _new_manifest(epoch, world_size, CREATED_BY))
        self.run_dir = run_dir
        self.rows = 0
        self.state = ShardState(
            shard=f"r{rank:05d}-{attempt}",
            rank=rank,
            attempt=attempt,
            # The name may come from a foreign file; a line break in it would be refused on reading.
            host=printable(host)[:_MAX_HOST] or socket.gethostname(),
            pid=pid or os.getpid(),
            framework=framework,
            mode="stream",
            clock_offset_ns=clock_offset_ns,
        )
        self._store = SegmentStore(run_dir, self.state.shard)
        self._events = EventRows(rank)

    def write(self, name: str, columns: Mapping[str, Any]) -> int:
        """Write rows of a table and return how many.

        Args:
            name: the table.
            columns: column name to ``Coded``, ``Masked``, an array of shape (rows,), an Arrow
                array, or one value for all rows. A column that may be NULL can be left out, and so
                can ``rank``, and those that have an obvious default.

        Raises:
            KeyError: a column is missing or the table has none of that name.
            OSError: the disk is full.
        """
        table = arrow_table(name, columns, self.state.rank)
        for at in range(0, table.num_rows, SEGMENT_ROWS):
            self._add(name, table.slice(at, SEGMENT_ROWS))
        return int(table.num_rows)

    def event(self, kind: str, /, **fields: Any) -> None:
        """Add an event, as ``ShardWriter.event`` does (``step``, ``note``, ``finding`` …)."""
        self._events.add({"t": kind, **fields})

    def close(self, state: str = "closed") -> None:
        """Write the events and the shard's state; the rows do not belong to the trace before."""
        if self.state.state != "live":
            return
        first = 0
        for name, table in self._events.tables().items():
            self.state.segments.append(
                self._store.write(name, table, first, max(self._events.next_id - 1, 0))
            )
        self.state.n_events = self._events.next_id
        self.state.records = self.rows
        self.state.state = state
        write_shard(self.run_dir, self.state)
        write_run_tables(self.run_dir)

    def __enter__(self) -> BulkShard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close("closed" if kind is None else "failed")

    def _add(self, name: str, table: pa.Table) -> None:
        segment = self._write_segment(name, table)
        self.state.segments.append(segment)
        self.rows += table.num_rows

    def _write_segment(self, name: str, table: pa.Table) -> Segment:
        ids = table[_IDS[name]] if name in _IDS else None
        low = ids[0].as_py() if ids is not None else self.rows
        high = ids[-1].as_py() if ids is not None else self.rows + table.num_rows - 1
        return self._store.write(name, table, low, high)


def arrow_table(name: str, columns: Mapping[str, Any], rank: int) -> pa.Table:
    """Return a table of the format from columns; see ``BulkShard.write``.

    Raises:
        KeyError: a column is missing or unknown.
    """
    known = {column.name for column in TABLES[name]}
    unknown = set(columns) - known
    if unknown:
        raise KeyError(f"{name} has no column {sorted(unknown)}")
    rows = next((n for n in map(_length, columns.values()) if n is not None), 0)
    schema = arrow_schema(name)
    given = {"rank": rank, **columns}
    arrays = [
        _array(column, schema.field(column.name).type, given, rows) for column in TABLES[name]
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _length(value: Any) -> int | None:
    if isinstance(value, Coded):
        return len(np.asarray(value.codes))
    if isinstance(value, Masked):
        return len(np.asarray(value.values))
    return None if isinstance(value, str | int | float) or value is None else len(value)


def _array(column: Column, type_: pa.DataType, given: Mapping[str, Any], rows: int) -> pa.Array:
    if column.name not in given:
        if column.nullable:
            return pa.nulls(rows, type_)
        if column.type == "list<int64>":
            return _empty_lists(rows, type_)
        if column.name not in _DEFAULTS:
            raise KeyError(f"the column {column.name} is missing")
    value = given.get(column.name, _DEFAULTS.get(column.name))
    if isinstance(value, Coded):
        array = coded(np.asarray(value.codes), value.texts)
        return array if column.type == "dictionary" else array.cast(type_)
    if isinstance(value, Masked):
        return numbers(np.asarray(value.values), type_, np.asarray(value.null, dtype=bool))
    if isinstance(value, pa.Array | pa.ChunkedArray):
        array = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
        return array if array.type == type_ else array.cast(type_)
    if value is None or isinstance(value, str | int | float):
        if column.type == "dictionary":
            value = str(value or "")
        return constant(value, type_, rows)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        return numbers(value, type_)
    return pa.array(value, type_)


def _empty_lists(rows: int, type_: pa.DataType) -> pa.Array:
    offsets = pa.py_buffer(np.zeros(rows + 1, dtype=np.int32))
    nothing = numbers(np.zeros(0, dtype=np.int64), pa.int64())
    return pa.Array.from_buffers(type_, rows, [None, offsets], children=[nothing])
