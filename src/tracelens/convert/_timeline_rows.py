"""Reads a profile's tables row by row in bounded pieces, and links launches to kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

Steps = tuple[int | None, int | None]
"""First step and the one after the last; ``None`` where open."""

_BATCH_ROWS = 1 << 14
_RANK_SHIFT = 40
_HOST_KINDS = ("runtime", "python", "module", "annotation", "step", "data")


def rows(
    reader: TraceReader,
    table: str,
    names: Sequence[str],
    rank: int,
    steps: Steps,
    order: str = "",
) -> Iterator[tuple[Any, ...]]:
    """Yield a rank's rows of a table, ``None`` for NULL.

    Args:
        reader: an open trace.
        table: the table.
        names: its columns.
        rank: whose.
        steps: of which steps.
        order: a column to sort by; as they were written if empty.
    """
    found = reader.columns(table, names, rank=rank, steps=steps)
    if order:
        found = found.sort_by(order)
    for batch in found.to_batches(max_chunksize=_BATCH_ROWS):
        columns = [column.to_pylist() for column in batch.columns]
        yield from zip(*columns, strict=True)


class Links:
    """Flows of one rank: from a launch to its kernels, from a forward op to its backward ops.

    A flow's id is unique in the trace. It leaves the call that launched a kernel, or the op where
    no call is known.

    Args:
        reader: an open trace.
        rank: whose.
        steps: of which steps.

    Attributes:
        main_pid: process id of most of the host's spans.
    """

    def __init__(self, reader: TraceReader, rank: int, steps: Steps) -> None:
        self._next = (rank + 1) << _RANK_SHIFT
        self._from_op: dict[int, tuple[int, ...]] = {}
        self._from_span: dict[int, tuple[int, ...]] = {}
        self._into_op: dict[int, tuple[int, ...]] = {}
        self._into_kernel: dict[int, tuple[int, ...]] = {}
        self.main_pid = self._host_pid(reader, rank, steps)
        shown_spans = {row[0] for row in rows(reader, "spans", ["span_id"], rank, steps)}
        shown_ops = {row[0] for row in rows(reader, "ops", ["op_id"], rank, steps)}
        for op, forward in rows(reader, "ops", ["op_id", "fwd_op_id"], rank, steps):
            if forward is not None and forward in shown_ops and forward != op:
                self._link(self._from_op, forward, self._into_op, op)
        for kernel, op, span in rows(
            reader, "kernels", ["kern_id", "op_id", "span_id"], rank, steps
        ):
            if span is not None and span in shown_spans:
                self._link(self._from_span, span, self._into_kernel, kernel)
            elif op is not None and op in shown_ops:
                self._link(self._from_op, op, self._into_kernel, kernel)

    def from_op(self, op_id: int) -> tuple[int, ...]:
        """Return the flows that leave an op."""
        return self._from_op.get(op_id, ())

    def into_op(self, op_id: int) -> tuple[int, ...]:
        """Return the flows that enter an op."""
        return self._into_op.get(op_id, ())

    def from_span(self, span_id: int) -> tuple[int, ...]:
        """Return the flows that leave a span."""
        return self._from_span.get(span_id, ())

    def into_kernel(self, kern_id: int) -> tuple[int, ...]:
        """Return the flows that enter a kernel."""
        return self._into_kernel.get(kern_id, ())

    def _link(
        self,
        leaves: dict[int, tuple[int, ...]],
        source: int,
        enters: dict[int, tuple[int, ...]],
        target: int,
    ) -> None:
        leaves[source] = (*leaves.get(source, ()), self._next)
        enters[target] = (*enters.get(target, ()), self._next)
        self._next += 1

    def _host_pid(self, reader: TraceReader, rank: int, steps: Steps) -> int | None:
        counts: dict[int, int] = {}
        for kind, pid in rows(reader, "spans", ["kind", "pid"], rank, steps):
            if pid is not None and kind in _HOST_KINDS:
                counts[pid] = counts.get(pid, 0) + 1
        return max(counts, key=lambda each: counts[each]) if counts else None
