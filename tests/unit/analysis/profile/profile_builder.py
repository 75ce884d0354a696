"""Builds small profiles row by row, so that a test says exactly what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tracelens.analysis.profile.data import ProfileData, load_profile
from tracelens.events import OpFlag
from tracelens.storage.bulk import BulkShard, Coded, Masked
from tracelens.storage.reader import open_trace
from tracelens.storage.tables import TABLES

Row = dict[str, Any]


class ProfileBuilder:
    """Rows of one or more ranks; ``write`` makes them a trace.

    Times are ns. Ids are given in order of adding, from 1; ops and spans must be added parents
    first.
    """

    def __init__(self, rank: int = 0, attempt: int = 0) -> None:
        self.rank = rank
        self.attempt = attempt
        self.rows: dict[str, list[Row]] = {}
        self.events: list[tuple[str, Row]] = []

    def op(self, name: str, start: int, end: int, **columns: Any) -> int:
        """Add an op and return its id."""
        row = {"name": name, "start_ns": start, "duration_ns": end - start, "phase": "forward",
               "flags": int(OpFlag.PROFILED), **columns}  # fmt: skip
        return self._add("ops", "op_id", row)

    def span(self, kind: str, name: str, start: int, end: int, **columns: Any) -> int:
        """Add a span and return its id."""
        row = {"kind": kind, "name": name, "start_ns": start, "duration_ns": end - start, **columns}
        return self._add("spans", "span_id", row)

    def kernel(self, name: str, start: int, end: int, **columns: Any) -> int:
        """Add device work and return its id."""
        row = {"kind": "kernel", "name": name, "start_ns": start, "duration_ns": end - start,
               "device": 0, "stream": 7, **columns}  # fmt: skip
        return self._add("kernels", "kern_id", row)

    def launched(
        self, name: str, call: tuple[int, int], work: tuple[int, int], **columns: Any
    ) -> int:
        """Add a launching call and the work that it launched; return the work's id."""
        corr = 1000 + len(self.rows.get("kernels", ()))
        self.span("runtime", "cudaLaunchKernel", *call, corr_id=corr)
        return self.kernel(name, *work, corr_id=corr, **columns)

    def memory(self, t: int, size: int, **columns: Any) -> None:
        """Add an allocation (or a free, below 0)."""
        row = {"t_ns": t, "size_bytes": size, "device": "cuda:0", **columns}
        self.rows.setdefault("memory", []).append(row)

    def sample(self, stack: str, duration: int, **columns: Any) -> None:
        """Add a stack sample."""
        row = {"stack": stack, "duration_ns": duration, "count": 1, "thread": "main", **columns}
        self.rows.setdefault("samples", []).append(row)

    def step(self, number: int, start: int, end: int) -> None:
        """Mark a step."""
        fields = {"step": number, "start_ns": start, "duration_ns": end - start}
        self.events.append(("step", fields))

    def event(self, kind: str, fields: Row) -> None:
        """Add any event."""
        self.events.append((kind, fields))

    def write(self, path: Path) -> Path:
        """Write the shard into the trace at ``path``."""
        with BulkShard(path, self.rank, attempt=self.attempt, epoch_unix_ns=0) as shard:
            for table, rows in self.rows.items():
                shard.write(table, _columns(table, rows))
            for kind, fields in self.events:
                shard.event(kind, **fields)
        return path

    def load(self, path: Path, **options: Any) -> ProfileData:
        """Write the trace, open it and return the profile."""
        return load_profile(open_trace(self.write(path)), self.rank, **options)

    def _add(self, table: str, id_name: str, row: Row) -> int:
        rows = self.rows.setdefault(table, [])
        rows.append({id_name: len(rows) + 1, **row})
        return len(rows)


def _columns(table: str, rows: list[Row]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for column in TABLES[table]:
        if not any(column.name in row for row in rows):
            continue
        values = [row.get(column.name) for row in rows]
        if column.type in ("dictionary", "string"):
            texts = list(dict.fromkeys(v for v in values if v is not None))
            columns[column.name] = Coded(
                [texts.index(v) if v is not None else -1 for v in values], texts
            )
        else:
            null = np.array([value is None for value in values])
            default = {"step": -1}.get(column.name, 0)
            filled = np.array([default if value is None else value for value in values])
            columns[column.name] = Masked(filled, null) if column.nullable else filled
    if table in ("ops", "kernels", "spans"):
        columns.setdefault("step", np.full(len(rows), -1))
    for name in ("ord",):
        if table == "ops":
            columns.setdefault(name, np.arange(len(rows)))
    if table == "spans":
        columns.setdefault("tid", np.full(len(rows), 1))
    if table == "memory":
        columns.setdefault("step", np.full(len(rows), -1))
    return columns
