"""Where the ops of a shard are looked up: small segments in memory, large ones through DuckDB.

Both offer what ``records.RecordIndex`` offers for the ring, so that the reader can chain them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tracelens.events import Op, OpFlag
from tracelens.storage.rows import OP_COLUMNS, STAT_COLUMNS, op_from_row
from tracelens.storage.segment_files import SegmentFile
from tracelens.storage.sql import quote_path

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from tracelens.storage.sql import Database, Row

_BLOCK_OPS = 256
_CACHED_BLOCKS = 64
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
        return int(self.ids(step)[position])

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
    """The ops of a large shard, read through DuckDB from the files that can hold them.

    Args:
        database: returns the connection; called when the first query runs.
        ops: the shard's segments of the table ``ops``.
        stats: the shard's segments of the table ``stats``.
    """

    def __init__(
        self,
        database: Callable[[], Database],
        ops: Sequence[SegmentFile],
        stats: Sequence[SegmentFile],
    ) -> None:
        self._database = database
        self._ops = sorted(ops, key=lambda segment: (segment.op_lo or 0, str(segment.path)))
        self._stats = list(stats)
        self._blocks: OrderedDict[int, dict[int, Op]] = OrderedDict()
        self._cluster: tuple[Path, NDArray[np.int64]] | None = None

    def op(self, op_id: int) -> Op | None:
        """Return the op, ``None`` if it is not here."""
        if op_id < 0:
            return None
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
        where, parameters = ["op_id > ?"], [after_op_id]
        if first_step is not None:
            where, parameters = [*where, "step >= ?"], [*parameters, first_step]
        if last_step is not None:
            where, parameters = [*where, "step <= ?"], [*parameters, last_step]
        ids: list[int] = []
        # A composite op is recorded when it ends, so files may overlap in their ids.
        for segment in self._ops:
            if len(ids) >= limit and (segment.op_lo or 0) > ids[-1]:
                break
            if segment.may_hold(op_lo=after_op_id + 1, step_lo=first_step, step_hi=last_step):
                ids += self._ids([segment], " AND ".join(where), parameters, limit)
                ids = sorted(ids)[:limit]
        if not ids:
            return []
        wanted = set(ids)
        return [op for op in self._between(ids[0], ids[-1]) if op.op_id in wanted]

    def ids(self, step: int | None) -> NDArray[np.int64]:
        """Return the ids of all ops, or of one step's, ascending."""
        files = [s for s in self._ops if s.may_hold(step_lo=step, step_hi=step)]
        return self._ids_in(files, step)

    def count(self, step: int | None) -> int:
        """Return how many ops there are, in one step if given."""
        if step is None:
            return sum(segment.rows for segment in self._ops)
        return len(self.ids(step))

    def id_at(self, position: int, step: int | None) -> int:
        """Return the id of the op at a position in the order of ids."""
        if step is not None:
            return int(self.ids(step)[position])
        for cluster in _clusters(self._ops):
            rows = sum(segment.rows for segment in cluster)
            if position < rows:
                key = cluster[0].path
                if self._cluster is None or self._cluster[0] != key:
                    self._cluster = key, self._ids_in(cluster, None)
                return int(self._cluster[1][position])
            position -= rows
        raise IndexError(position)

    def hits(self, step: int | None) -> list[int]:
        """Return ids of ops whose output was non-finite, ascending."""
        files = [s for s in self._ops if s.may_hold(step_lo=step, step_hi=step)]
        where, parameters = "(flags & 1) != 0", []
        if step is not None:
            where, parameters = where + " AND step = ?", [step]
        return self._ids(files, where, parameters, None)

    def consumers(self, value_id: int, limit: int) -> list[int]:
        """Return ids of ops that read the value, ascending."""
        found: list[int] = []
        # A value is read after the op that wrote it began.
        for segment in self._ops:
            if len(found) >= limit:
                break
            if segment.may_hold(op_lo=(value_id >> 4) + 1):
                where = "op_id > ? AND list_contains(in_ids, ?)"
                found += self._ids([segment], where, [value_id >> 4, value_id], limit - len(found))
        return found

    def children(self, parent: Op, limit: int) -> list[int]:
        """Return ids of ops that a composite op called, ascending."""
        files = [
            s
            for s in self._ops
            if s.may_hold(op_lo=parent.op_id + 1, step_lo=parent.step, step_hi=parent.step)
        ]
        where = "op_id > ? AND step = ? AND parent_id = ?"
        return self._ids(files, where, [parent.op_id, parent.step, parent.op_id], limit)

    def _ids(
        self, files: Sequence[SegmentFile], where: str, parameters: list[int], limit: int | None
    ) -> list[int]:
        if not files:
            return []
        tail = "" if limit is None else f" LIMIT {int(limit)}"
        sql = f"SELECT op_id FROM {scan(files)} WHERE {where} ORDER BY op_id{tail}"
        return [row[0] for row in self._database().rows(sql, parameters)]

    def _ids_in(self, files: Sequence[SegmentFile], step: int | None) -> NDArray[np.int64]:
        import numpy as np

        if not files:
            return np.empty(0, dtype=np.int64)
        where, parameters = ("", []) if step is None else (" WHERE step = ?", [step])
        found = self._database().integers(f"SELECT op_id FROM {scan(files)}{where}", parameters)
        found.sort()
        return found

    def _between(self, low: int, high: int) -> list[Op]:
        files = [s for s in self._ops if s.may_hold(op_lo=low, op_hi=high)]
        if not files:
            return []
        where = "op_id BETWEEN ? AND ?"
        database = self._database()
        ops = database.rows(
            f"SELECT {', '.join(OP_COLUMNS)} FROM {scan(files)} WHERE {where} ORDER BY op_id",
            [low, high],
        )
        stat_files = [s for s in self._stats if s.may_hold(op_lo=low, op_hi=high)]
        stats: dict[int, list[dict[str, Any]]] = {}
        if stat_files:
            sql = f"SELECT {', '.join(STAT_COLUMNS)} FROM {scan(stat_files)} WHERE {where}"
            stats = _by_op(_dicts(STAT_COLUMNS, database.rows(sql, [low, high])))
        rows = _dicts(OP_COLUMNS, ops)
        return [op_from_row(row, stats.get(row["op_id"], ())) for row in rows]


def scan(files: Sequence[SegmentFile]) -> str:
    """Return the ``read_parquet`` call over these files, whose paths were checked on opening."""
    paths = ", ".join(quote_path(segment.path) for segment in files)
    return f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"


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
