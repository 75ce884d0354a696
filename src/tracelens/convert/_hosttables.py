"""Writes what ran on the host as the tables ``ops`` and ``spans``, nested by thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from tracelens.storage.columns import Coded

if TYPE_CHECKING:
    from tracelens.storage.bulk import BulkShard


def op_rows() -> Rows:
    """Return an empty table of ops.

    Its columns are ``tid start_ns end_ns seq`` and ``name module phase in_shapes``. ``seq`` is
    autograd's number of a forward op and of the backward ops that belong to it.
    """
    return Rows(("tid", "start_ns", "end_ns", "seq"), ("name", "module", "phase", "in_shapes"))


def span_rows() -> Rows:
    """Return an empty table of spans.

    Its columns are ``pid tid start_ns end_ns corr_id line`` and ``kind name file function args``.
    """
    return Rows(
        ("pid", "tid", "start_ns", "end_ns", "corr_id", "line"),
        ("kind", "name", "file", "function", "args"),
    )


@dataclass(frozen=True, slots=True)
class Launches:
    """The calls that launched work of a device; what is not known is ``MISSING``.

    Attributes:
        span_id: of the call, shape (kernels,).
        op_id: the innermost op around it, shape (kernels,).
        start_ns: when it began, shape (kernels,).
        row: its row among the spans, -1 where none is known, shape (kernels,).
    """

    span_id: NDArray[np.int64]
    op_id: NDArray[np.int64]
    start_ns: NDArray[np.int64]
    row: NDArray[np.int64]


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

    def launches(self, corr_id: NDArray[np.int64]) -> Launches:
        """Find the calls of these correlation ids.

        Args:
            corr_id: of kernels, ``MISSING`` or 0 where none is known, shape (kernels,).
        """
        n_ops = len(self._ops)
        of_spans = self._spans.number("corr_id")
        rows = np.flatnonzero((of_spans != MISSING) & (of_spans != 0))
        rows = rows[np.argsort(of_spans[rows], kind="stable")]
        known = of_spans[rows]
        place = np.searchsorted(known, corr_id)
        found = np.zeros(len(corr_id), dtype=bool)
        inside = place < len(known)
        found[inside] = known[place[inside]] == corr_id[inside]
        row = np.full(len(corr_id), -1, dtype=np.int64)
        row[found] = rows[place[found]]
        around = np.append(self._op_around[n_ops:], -1)
        start = np.append(self._start[n_ops:], MISSING)
        return Launches(self._span_ids[row], self._op_ids[around[row]], start[row], row)

    @property
    def span_around(self) -> NDArray[np.int64]:
        """The row of the innermost span around each span, -1 for none, shape (spans,)."""
        return self._span_around

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
                **_picked(ops, order, "name", "module", "phase", "in_shapes"),
                "op_id": np.arange(n_ops),
                "fwd_op_id": masked(self._op_ids[self._forward()[order]]),
                "step": steps,
                "ord": positions(steps),
                "parent_id": masked(self._op_ids[own[order]]),
                "tid": ops.number("tid")[order],
                "start_ns": start,
                "duration_ns": self._end[:n_ops][order] - start,
                "flags": flags[order],
            },
        )

    def _forward(self) -> NDArray[np.int64]:
        """Return the row of each backward op's forward op, -1 where none is known.

        An op that makes no node of autograd shows the number of the next one that does, so that of
        several forward ops the last to begin is meant.
        """
        seq, start = self._ops.number("seq"), self._start[: len(self._ops)]
        found = np.full(len(seq), -1, dtype=np.int64)
        known = seq != MISSING
        if not known.any() or "backward" not in self._ops.texts("phase"):
            return found
        backward = self._ops.codes("phase") == self._ops.texts("phase").index("backward")
        first = np.flatnonzero(known & ~backward)
        first = first[np.lexsort((start[first], seq[first]))]
        second = np.flatnonzero(known & backward)
        place = np.searchsorted(seq[first], seq[second], side="right") - 1
        hit = (place >= 0) & (seq[first][place] == seq[second]) if len(first) else place >= 0
        found[second[hit]] = first[place[hit]]
        return found

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
