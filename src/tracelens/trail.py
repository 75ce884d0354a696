"""One rank's ops as a line to walk along: what comes after, what before, what is at a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracelens.events import Op

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

_READ_TOGETHER = 512


class Trail:
    """Neighbours of ops in the order of their ids.

    Args:
        reader: the trace.
        rank: whose ops.
    """

    def __init__(self, reader: TraceReader, rank: int) -> None:
        self._reader = reader
        self._rank = rank

    def op(self, op_id: int) -> Op | None:
        """Return an op, ``None`` if it was not recorded."""
        return self._reader.op(op_id, self._rank)

    def first(self, step: int | None = None) -> Op | None:
        """Return the first op, or the first of a training step."""
        ops = self._reader.ops(rank=self._rank, step=step, limit=1)
        return ops[0] if ops else None

    def at(self, index: int) -> Op | None:
        """Return the op at a position, from 0."""
        ops = self._reader.ops_at(index, index + 1, rank=self._rank) if index >= 0 else []
        return ops[0] if ops else None

    def after(self, op_id: int) -> Op | None:
        """Return the op after an id."""
        # Ids are almost always consecutive, and a lookup by id is cached.
        op = self.op(op_id + 1)
        if op is None:
            page = self._reader.ops(rank=self._rank, after_op_id=op_id, limit=1)
            op = page[0] if page else None
        return op

    def before(self, op_id: int) -> Op | None:
        """Return the op before an id."""
        if op_id <= 0:
            return None
        op = self.op(op_id - 1)
        return op if op is not None else self.at(self._reader.position(op_id, self._rank) - 1)

    def ops(self, op_ids: Sequence[int]) -> list[Op]:
        """Return ops by their ids; ids that lie close together are read together."""
        found: list[Op] = []
        for first in range(0, len(op_ids), _READ_TOGETHER):
            ids = sorted(op_ids[first : first + _READ_TOGETHER])
            span = ids[-1] - ids[0] + 1
            if span <= 4 * len(ids):
                page = self._reader.ops(rank=self._rank, after_op_id=ids[0] - 1, limit=span)
                wanted = set(ids)
                found += [op for op in page if op.op_id in wanted]
            else:
                found += [op for op_id in ids if (op := self.op(op_id))]
        return found
