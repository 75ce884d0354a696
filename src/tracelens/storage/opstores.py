"""Where the ops of a shard are looked up: small segments in memory, large ones through DuckDB.

Both offer what ``records.RecordIndex`` offers for the ring, so that the reader can chain them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tracelens.events import NO_ID, SLOT_BITS, Op, OpFlag
from tracelens.storage.chunks import ChunkRef, file_chunk, table_chunk
from tracelens.storage.rows import OP_COLUMNS, STAT_COLUMNS, op_from_row
from tracelens.storage.segment_files import SegmentFile
from tracelens.storage.segment_table import SegmentTable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from tracelens.storage.sql import Row

_BLOCK_OPS = 32
_CACHED_BLOCKS = 512
_HIT = int(OpFlag.HIT)


class OpStore(Protocol):
    """Finds the ops of one shard."""

    def op(self, op_id: int) -> Op | None:
        """Return the op, ``None`` if it is not here."""

    def page(
        self, after_op_id: int, limit: int, first_step: int | None, last_step: int | None
    ) -> list[Op]:
        """Return up to ``limit`` ops above ``after_op_id``, ascending, of a range of steps."""

    def ids(self, step: int | None) -> NDArray[np.int64]:
        """Return the ids of all ops, or of one step's, ascending."""

    def count(self, step: int | None) -> int:
        """Return how many ops there are, in one step if given."""

    def id_at(self, position: int, step: int | None) -> int:
        """Return the id of the op at a position in the order of ids."""

    def position(self, op_id: int) -> int:
        """Return how many ops have smaller ids."""

    def hits(self, step: int | None) -> list[int]:
        """Return ids of ops whose output was non-finite, ascending."""

    def consumers(self, value_id: int, limit: int) -> list[int]:
        """Return ids of ops that read the value, ascending."""

    def children(self, parent: Op, limit: int) -> list[int]:
        """Return ids of ops that a composite op called, ascending."""


class TableOps:
    """The ops of a small shard, held in memory as Arrow tables."""

    def __init__(self, ops: pa.Table, stats: pa.Table) -> None:
        import numpy as np

        order = np.argsort(_ints(ops, "op_id"), kind="stable")
        self._ops = ops.take(order)
        self._ids = _ints(self._ops, "op_id")
        stat_order = np.argsort(_ints(stats, "op_id"), kind="stable")
        self._stats = stats.take(stat_order)
        self._stat_ids = _ints(self._stats, "op_id")

    def op(self, op_id: int) -> Op | None:
        """Return the op, ``None`` if it is not here."""
        row = int(self._ids.searchsorted(op_id))
        if row >= len(self._ids) or int(self._ids[row]) != op_id:
            return None
        return self._build(row, row + 1)[0]

    def page(
        self, after_op_id: int, limit: int, first_step: int | None, last_step: int | None
    ) -> list[Op]:
        """Return up to ``limit`` ops above ``after_op_id``, ascending."""
        start = int(self._ids.searchsorted(after_op_id, side="right"))
        if first_step is None and last_step is None:
            return self._build(start, min(start + limit, len(self._ids)))
        steps = _ints(self._ops, "step")[start:]
        keep = _between(steps, first_step, last_step)
        rows = (keep.nonzero()[0] + start)[:limit]
        return [self._build(int(row), int(row) + 1)[0] for row in rows]

    def ids(self, step: int | None) -> NDArray[np.int64]:
        """Return the ids of all ops, or of one step's, ascending."""
        return self._ids if step is None else self._ids[_ints(self._ops, "step") == step]

    def count(self, step: int | None) -> int:
        """Return how many ops there are, in one step if given."""
        return len(self.ids(step))

    def id_at(self, position: int, step: int | None) -> int:
        """Return the id of the op at a position in the order of ids."""
        return at(self.ids(step), position)

    def position(self, op_id: int) -> int:
        """Return how many ops have smaller ids."""
        return int(self._ids.searchsorted(op_id))

    def chunks(self) -> list[ChunkRef]:
        """Return the ops as chunks to search."""
        return table_chunk(self._ops, self)

    def hits(self, step: int | None) -> list[int]:
        """Return ids of ops whose output was non-finite, ascending."""
        keep = (_ints(self._ops, "flags") & _HIT) != 0
        if step is not None:
            keep &= _ints(self._ops, "step") == step
        return [int(op_id) for op_id in self._ids[keep]]

    def consumers(self, value_id: int, limit: int) -> list[int]:
        """Return ids of ops that read the value, ascending."""
        import numpy as np

        lists = self._ops.column("in_ids").combine_chunks()
        values = lists.flatten().to_numpy(zero_copy_only=False)
        rows = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        owners = np.repeat(self._ids, rows)
        found: NDArray[np.int64] = np.unique(owners[values == value_id])
        return [int(op_id) for op_id in found[:limit]]

    def children(self, parent: Op, limit: int) -> list[int]:
        """Return ids of ops that a composite op called, ascending."""
        parents = self._ops.column("parent_id").fill_null(-1).to_numpy()
        return [int(op_id) for op_id in self._ids[parents == parent.op_id][:limit]]

    def _build(self, start: int, stop: int) -> list[Op]:
        if stop <= start:
            return []
        rows = self._ops.slice(start, stop - start).to_pylist()
        low = int(self._stat_ids.searchsorted(self._ids[start]))
        high = int(self._stat_ids.searchsorted(self._ids[stop - 1], side="right"))
        stats = _by_op(self._stats.slice(low, high - low).to_pylist()) if high > low else {}
        return [op_from_row(row, stats.get(row["op_id"], ())) for row in rows]


class SegmentOps:
    """The ops of a large shard, read through DuckDB from the files that can hold them."""

    def __init__(self, ops: SegmentTable, stats: SegmentTable) -> None:
        self._ops = ops
        self._stats = stats
        self._blocks: OrderedDict[int, dict[int, Op]] = OrderedDict()
        self._cluster: tuple[Path, NDArray[np.int64]] | None = None

    def op(self, op_id: int) -> Op | None:
        """Return the op, ``None`` if it is not here."""
        block = op_id // _BLOCK_OPS
        known = self._blocks.get(block)
        if known is None:
            low = block * _BLOCK_OPS
            ops = self._between(low, low + _BLOCK_OPS - 1)
            known = self._blocks[block] = {op.op_id: op for op in ops}
            if len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return known.get(op_id)

    def page(
        self, after_op_id: int, limit: int, first_step: int | None, last_step: int | None
    ) -> list[Op]:
        """Return up to ``limit`` ops above ``after_op_id``, ascending."""
        where, parameters = _of_steps(first_step, last_step)
        ids: list[int] = []
        # A composite op is recorded when it ends, so files may overlap in their ids.
        for file in list(self._ops.files):
            if len(ids) >= limit and (file.op_lo or 0) > ids[-1]:
                break
            if file.may_hold(op_lo=after_op_id + 1, step_lo=first_step, step_hi=last_step):
                above = f"op_id > ? AND {where}"
                known = [after_op_id, *parameters]
                rows = self._ops.rows(["op_id"], self._ops.sound([file]), above, known, limit)
                ids += [row[0] for row in rows]
                ids = sorted(ids)[:limit]
        if not ids:
            return []
        wanted = set(ids)
        found = self._between(ids[0], ids[-1], first_step, last_step)
        return [op for op in found if op.op_id in wanted]

    def ids(self, step: int | None) -> NDArray[np.int64]:
        """Return the ids of all ops, or of one step's, ascending."""
        where, parameters = _of_steps(step, step)
        return self._ops.op_ids(self._ops.pick(step_lo=step, step_hi=step), where, parameters)

    def count(self, step: int | None) -> int:
        """Return how many ops there are, in one step if given."""
        if step is None:
            return sum(file.rows for file in self._ops.files)
        return len(self.ids(step))

    def id_at(self, position: int, step: int | None) -> int:
        """Return the id of the op at a position in the order of ids."""
        if step is not None:
            return at(self.ids(step), position)
        for cluster in _clusters(self._ops.files):
            rows = sum(file.rows for file in cluster)
            if position < rows:
                return at(self._ids_of(cluster), position)
            position -= rows
        return max((file.op_hi or 0 for file in self._ops.files), default=NO_ID)

    def position(self, op_id: int) -> int:
        """Return how many ops have smaller ids."""
        before = 0
        for cluster in _clusters(self._ops.files):
            if any(file.op_hi is None or file.op_hi >= op_id for file in cluster):
                return before + int(self._ids_of(cluster).searchsorted(op_id))
            before += sum(file.rows for file in cluster)
        return before

    def chunks(self) -> list[ChunkRef]:
        """Return the ops as chunks to search, a file each."""
        return [self._chunk(file) for file in self._ops.files]

    def _chunk(self, file: SegmentFile) -> ChunkRef:
        return ChunkRef(
            rows=file.rows,
            op_lo=file.op_lo or 0,
            op_hi=(1 << 62) if file.op_hi is None else file.op_hi,
            load=lambda: file_chunk(file) if self._ops.sound([file]) else None,
            key=file.path,
            damaged=lambda reason: self._ops.remove(file, reason),
            step_lo=file.step_lo or 0,
            step_hi=(1 << 62) if file.step_hi is None else file.step_hi,
        )

    def _ids_of(self, cluster: Sequence[SegmentFile]) -> NDArray[np.int64]:
        key = cluster[0].path
        if self._cluster is None or self._cluster[0] != key:
            self._cluster = key, self._ops.op_ids(self._ops.sound(cluster))
        return self._cluster[1]

    def hits(self, step: int | None) -> list[int]:
        """Return ids of ops whose output was non-finite, ascending."""
        where, parameters = _of_steps(step, step)
        files = self._ops.pick(step_lo=step, step_hi=step)
        return [
            row[0]
            for row in self._ops.rows(["op_id"], files, f"(flags & 1) != 0 AND {where}", parameters)
        ]

    def consumers(self, value_id: int, limit: int) -> list[int]:
        """Return ids of ops that read the value, ascending."""
        # A value is read after the op that wrote it began.
        producer = value_id >> SLOT_BITS
        where = "op_id > ? AND list_contains(in_ids, ?)"
        found: list[int] = []
        for file in list(self._ops.files):
            if len(found) >= limit and (file.op_lo or 0) > found[-1]:
                break
            if file.may_hold(op_lo=producer + 1):
                rows = self._ops.rows(
                    ["op_id"], self._ops.sound([file]), where, [producer, value_id], limit
                )
                found = sorted({*found, *(row[0] for row in rows)})[:limit]
        return found

    def children(self, parent: Op, limit: int) -> list[int]:
        """Return ids of ops that a composite op called, ascending."""
        files = self._ops.pick(op_lo=parent.op_id + 1, step_lo=parent.step, step_hi=parent.step)
        where = "op_id > ? AND step = ? AND parent_id = ?"
        parameters = [parent.op_id, parent.step, parent.op_id]
        return [row[0] for row in self._ops.rows(["op_id"], files, where, parameters, limit)]

    def _between(
        self, low: int, high: int, first_step: int | None = None, last_step: int | None = None
    ) -> list[Op]:
        where, parameters = _of_steps(first_step, last_step)
        where, parameters = f"op_id BETWEEN ? AND ? AND {where}", [low, high, *parameters]
        files = self._ops.pick(op_lo=low, op_hi=high, step_lo=first_step, step_hi=last_step)
        ops = self._ops.rows(OP_COLUMNS, files, where, parameters)
        stat_files = self._stats.pick(op_lo=low, op_hi=high)
        stats = _by_op(
            _dicts(STAT_COLUMNS, self._stats.rows(STAT_COLUMNS, stat_files, where, parameters))
        )
        rows = _dicts(OP_COLUMNS, ops)
        return [op_from_row(row, stats.get(row["op_id"], ())) for row in rows]


def at(ids: NDArray[np.int64], position: int) -> int:
    """Return the id at a position, the last one past the end, -1 if there is none."""
    return int(ids[min(position, len(ids) - 1)]) if len(ids) else NO_ID


def _of_steps(first: int | None, last: int | None) -> tuple[str, list[int]]:
    """Return a condition on ``step`` and its parameters."""
    where = "true"
    parameters: list[int] = []
    if first is not None:
        where, parameters = f"{where} AND step >= ?", [*parameters, first]
    if last is not None:
        where, parameters = f"{where} AND step <= ?", [*parameters, last]
    return where, parameters


def _clusters(files: Sequence[SegmentFile]) -> Iterator[list[SegmentFile]]:
    """Yield groups of files, sorted by id, such that only files of one group overlap in ids."""
    group: list[SegmentFile] = []
    highest = -1
    for file in files:
        unknown = file.op_lo is None or file.op_hi is None
        if group and not unknown and (file.op_lo or 0) > highest:
            yield group
            group = []
        group.append(file)
        highest = max(highest, (1 << 62) if file.op_hi is None else file.op_hi)
    if group:
        yield group


def _dicts(columns: Sequence[str], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield dict(zip(columns, row, strict=True))


def _by_op(
    rows: Iterator[dict[str, Any]] | list[dict[str, Any]],
) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["op_id"], []).append(row)
    return grouped


def _ints(table: pa.Table, column: str) -> NDArray[np.int64]:
    import numpy as np

    return table.column(column).to_numpy().astype(np.int64, copy=False)  # type: ignore[no-any-return]


def _between(steps: NDArray[np.int64], first: int | None, last: int | None) -> NDArray[np.bool_]:
    import numpy as np

    keep = np.ones(len(steps), dtype=bool)
    if first is not None:
        keep &= steps >= first
    if last is not None:
        keep &= steps <= last
    return keep
