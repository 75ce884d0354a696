"""Finding ops among ring records."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracelens.events import Op, OpFlag, RecordKind
from tracelens.storage.decode import Decoder, Records, Strings
from tracelens.storage.opstores import at

__all__ = ["RecordIndex", "Records", "Strings"]


class RecordIndex:
    """Finds ops among ring records.

    Args:
        records: committed records of one shard, in any order.
        strings: the shard's interned values.
        rank: the shard's rank.
    """

    def __init__(self, records: Records, strings: Strings, rank: int = 0) -> None:
        self._records = records
        self._decoder = Decoder(strings, rank)
        ids = records["op_id"].astype(np.int64)
        self._order = np.argsort(ids, kind="stable")
        self._sorted_ids = ids[self._order]
        self._op_rows = self._order[records["kind"][self._order] == RecordKind.OP]
        self.op_ids: NDArray[np.int64] = ids[self._op_rows]
        """Ids of the ops present, ascending."""

    def __len__(self) -> int:
        return len(self.op_ids)

    def op(self, op_id: int) -> Op | None:
        """Return the op, ``None`` if its record is not here."""
        low = int(self._sorted_ids.searchsorted(op_id))
        high = int(self._sorted_ids.searchsorted(op_id, side="right"))
        rows = np.sort(self._order[low:high])
        return self._decoder.op(self._records[rows])

    def page(
        self, after_op_id: int, limit: int, first_step: int | None, last_step: int | None
    ) -> list[Op]:
        """Return up to ``limit`` ops above ``after_op_id``, ascending, of a range of steps."""
        keep = self.op_ids > after_op_id
        steps = self._of_ops("step")
        if first_step is not None:
            keep &= steps >= first_step
        if last_step is not None:
            keep &= steps <= last_step
        ops = (self.op(int(op_id)) for op_id in self.op_ids[keep][:limit])
        return [op for op in ops if op is not None]

    def ids(self, step: int | None = None) -> NDArray[np.int64]:
        """Return the ids of all ops, or of one step's, ascending."""
        return self.op_ids if step is None else self.op_ids[self._of_ops("step") == step]

    def count(self, step: int | None) -> int:
        """Return how many ops there are, in one step if given."""
        return len(self.ids(step))

    def id_at(self, position: int, step: int | None) -> int:
        """Return the id of the op at a position in the order of ids."""
        return at(self.ids(step), position)

    def position(self, op_id: int) -> int:
        """Return how many ops have smaller ids."""
        return int(self.op_ids.searchsorted(op_id))

    def hits(self, step: int | None = None) -> list[int]:
        """Return ids of ops whose output was non-finite, ascending."""
        keep = (self._of_ops("flags") & int(OpFlag.HIT)) != 0
        if step is not None:
            keep &= self._of_ops("step") == step
        return [int(op_id) for op_id in self.op_ids[keep]]

    def consumers(self, value_id: int, limit: int = 64) -> list[int]:
        """Return ids of ops that read the value, ascending, at most ``limit``."""
        kind = self._records["kind"]
        rows = (kind == RecordKind.OP) | (kind == RecordKind.INPUTS)
        found = rows & (self._records["in_ids"] == value_id).any(axis=1)
        return [int(op_id) for op_id in np.unique(self._records["op_id"][found])[:limit]]

    def children(self, parent: Op, limit: int) -> list[int]:
        """Return ids of ops called by a composite op, ascending."""
        found = self.op_ids[self._of_ops("parent_id") == parent.op_id]
        return [int(op_id) for op_id in found[:limit]]

    def _of_ops(self, field: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self._records[field][self._op_rows].astype(np.int64)
        return column
