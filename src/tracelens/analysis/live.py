"""Ops straight from ring records: the live session's source, and a recovered ring's."""

from __future__ import annotations

from collections import OrderedDict

from tracelens.events import Op
from tracelens.storage.records import RecordIndex, Records, Strings

_CACHED_OPS = 8192


class RingOps(RecordIndex):
    """An ``OpSource`` over committed ring records; an ``Op`` is built only when asked for.

    Args:
        records: structured array of ``storage.format.RECORD``, as ``ShardWriter.committed()``
            returns it.
        strings: maps an interned id to its value (``ShardWriter.strings``).
        rank: the rank of the shard the records come from.

    An op whose record was overwritten is unknown (``op`` returns ``None``). Building the indexes
    is a few vectorised sorts: milliseconds for a full ring.
    """

    def __init__(self, records: Records, strings: Strings, *, rank: int = 0) -> None:
        super().__init__(records, strings, rank)
        self.rank = rank
        self._built: OrderedDict[int, Op | None] = OrderedDict()

    def op(self, op_id: int) -> Op | None:
        """Return the op, or ``None`` if the ring does not hold it."""
        if op_id in self._built:
            return self._built[op_id]
        op = super().op(op_id)
        self._built[op_id] = op
        if len(self._built) > _CACHED_OPS:
            self._built.popitem(last=False)
        return op
