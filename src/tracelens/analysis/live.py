"""Ops straight from ring records: the live session's source, and a recovered ring's."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from tracelens.events import Op, RecordKind
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
        self._readers: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def op(self, op_id: int) -> Op | None:
        """Return the op, or ``None`` if the ring does not hold it."""
        if op_id in self._built:
            return self._built[op_id]
        op = super().op(op_id)
        self._built[op_id] = op
        if len(self._built) > _CACHED_OPS:
            self._built.popitem(last=False)
        return op

    def consumers(self, value_id: int, limit: int = 64) -> list[int]:
        """Return ids of ops that read the value, ascending, at most ``limit``."""
        if self._readers is None:
            self._readers = self._index_readers()
        values, readers = self._readers
        low = int(values.searchsorted(value_id, "left"))
        high = int(values.searchsorted(value_id, "right"))
        return [int(op_id) for op_id in np.unique(readers[low:high])[:limit]]

    def _index_readers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return all value ids that were read, ascending, and who read each."""
        kind = self._records["kind"]
        rows = (kind == RecordKind.OP) | (kind == RecordKind.INPUTS)
        values = self._records["in_ids"][rows]
        readers = np.broadcast_to(self._records["op_id"][rows][:, None], values.shape)
        known = values >= 0
        flat_values, flat_readers = values[known], readers[known]
        order = np.argsort(flat_values, kind="stable")
        return flat_values[order], flat_readers[order]
