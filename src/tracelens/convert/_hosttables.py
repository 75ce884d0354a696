"""Writes what ran on the host as the tables ``ops`` and ``spans``, nested by thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracelens.convert._columns import (
    MISSING,
    Rows,
    masked,
    nearest,
    parents,
    positions,
    step_of,
)
from tracelens.events import OpFlag
from tracelens.storage.bulk import BulkShard, Coded


def op_rows() -> Rows:
    """Return an empty table of ops: ``tid start_ns end_ns``, ``name module phase``."""
    return Rows(("tid", "start_ns", "end_ns"), ("name", "module", "phase"))


def span_rows() -> Rows:
    """Return an empty table of spans.

    Its columns are ``pid tid start_ns end_ns corr_id line`` and ``kind name file function args``.
    """
    return Rows(
        ("pid", "tid", "start_ns", "end_ns", "corr_id", "line"),
        ("kind", "name", "file", "function", "args"),
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """The call that launched work of a device.

    Attributes:
        span_id: of the call.
        op_id: the innermost op around it.
        start_ns: when it began.
    """

    span_id: int
    op_id: int | None
    start_ns: int


class HostTables:
    """The host's ops and spans, with ids in order of time.

    Args:
        ops: what ``op_rows`` returns, filled; on the threads of the same process, so without pid.
        spans: what ``span_rows`` returns, filled.
        steps: ``step``, ``start_ns``, ``duration_ns`` of each step, in order of time.

    Attributes:
        op_id: the id of each row of ``ops``.
    """

    def __init__(self, ops: Rows, spans: Rows, steps: Sequence[Mapping[str, int]]) -> None:
        self._ops, self._spans, self._steps = ops, spans, steps
        n_ops, n_spans = len(ops), len(spans)
        self._start = np.concatenate([ops.number("start_ns"), spans.number("start_ns")])
        self._end = np.concatenate([ops.number("end_ns"), spans.number("end_ns")])
        around = parents(_threads(ops, spans), self._start, self._end)
        is_op = np.arange(n_ops + n_spans) < n_ops
        self._op_around = nearest(around, is_op)
        outer = nearest(around, ~is_op)[n_ops:]
        self._span_around = np.where(outer >= 0, outer - n_ops, -1)
        self._op_order, self.op_id = _ids(self._start[:n_ops], self._end[:n_ops])
        self._span_order, self._span_id = _ids(self._start[n_ops:], self._end[n_ops:])
        # The last place is what an index of -1 picks: none.
        self._op_ids = np.append(self.op_id, MISSING)
        self._span_ids = np.append(self._span_id, MISSING)

    def write(self, shard: BulkShard) -> None:
        """Write both tables."""
        if len(self._ops):
            self._write_ops(shard)
        if len(self._spans):
            self._write_spans(shard)

    def launches(self, key: NDArray[np.int64] | None = None) -> dict[int, Launch]:
        """Return the calls that launched something, by their correlation id.

        Args:
            key: what is taken instead of the correlation ids, shape (spans,).
        """
        n_ops = len(self._ops)
        corr = self._spans.number("corr_id")
        key = corr if key is None else key
        op_id = self._op_ids[self._op_around[n_ops:]]
        start = self._start[n_ops:]
        return {
            int(key[row]): Launch(
                int(self._span_id[row]),
                None if op_id[row] == MISSING else int(op_id[row]),
                int(start[row]),
            )
            for row in np.flatnonzero(corr != MISSING).tolist()
        }

    def _write_ops(self, shard: BulkShard) -> None:
        ops, order, n_ops = self._ops, self._op_order, len(self._ops)
        own = self._op_around[:n_ops]
        holds = np.isin(np.arange(n_ops), own)
        flags = np.where(holds, int(OpFlag.PROFILED | OpFlag.COMPOSITE), int(OpFlag.PROFILED))
        start = self._start[:n_ops][order]
        steps = step_of(start, self._steps)
        shard.write(
            "ops",
            {
                **_picked(ops, order, "name", "module", "phase"),
                "op_id": np.arange(n_ops),
                "step": steps,
                "ord": positions(steps),
                "parent_id": masked(self._op_ids[own[order]]),
                "tid": ops.number("tid")[order],
                "start_ns": start,
                "duration_ns": self._end[:n_ops][order] - start,
                "flags": flags[order],
            },
        )

    def _write_spans(self, shard: BulkShard) -> None:
        spans, order, n_ops = self._spans, self._span_order, len(self._ops)
        start = self._start[n_ops:][order]
        shard.write(
            "spans",
            {
                **_picked(spans, order, "kind", "name", "file", "function", "args"),
                "span_id": np.arange(len(spans)),
                "step": step_of(start, self._steps),
                "pid": masked(spans.number("pid")[order]),
                "tid": spans.number("tid")[order],
                "start_ns": start,
                "duration_ns": self._end[n_ops:][order] - start,
                "parent_id": masked(self._span_ids[self._span_around[order]]),
                "op_id": masked(self._op_ids[self._op_around[n_ops:][order]]),
                "corr_id": masked(spans.number("corr_id")[order]),
                "line": masked(spans.number("line")[order]),
            },
        )


def _threads(ops: Rows, spans: Rows) -> NDArray[np.int64]:
    """Number the threads: those of spans with a process id are not those without."""
    if not len(ops) + len(spans):
        return np.zeros(0, dtype=np.int64)
    pid = np.concatenate([np.full(len(ops), MISSING), spans.number("pid")])
    tid = np.concatenate([ops.number("tid"), spans.number("tid")])
    _, pid = np.unique(pid, return_inverse=True)
    _, tid = np.unique(tid, return_inverse=True)
    found: NDArray[np.int64] = pid * (int(tid.max()) + 1) + tid
    return found


def _ids(
    start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows in order of time, the outer before the inner, and each row's place in it."""
    order = np.lexsort((-end, start)).astype(np.int64)
    ids = np.empty(len(order), dtype=np.int64)
    ids[order] = np.arange(len(order))
    return order, ids


def _picked(rows: Rows, order: NDArray[np.int64], *names: str) -> dict[str, Coded]:
    return {name: Coded(rows.codes(name)[order], rows.texts(name)) for name in names}
