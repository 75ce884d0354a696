"""Reading a trace: shards, steps, ops and their neighbours, events, values, SQL.

Opening reads only JSON. DuckDB or pyarrow are imported when a question needs Parquet; a trace
that is live or whose writer was killed is answered from its ring as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tracelens.events import SLOT_BITS, Op
from tracelens.storage.catalog import Catalog, open_catalog
from tracelens.storage.eventstore import EventStore
from tracelens.storage.health import Health
from tracelens.storage.manifest import Manifest, ShardState
from tracelens.storage.search import Found, Progress
from tracelens.storage.shardreader import ShardReader
from tracelens.storage.sql import MEMORY_LIMIT_BYTES, QueryResult, Row
from tracelens.storage.sqlviews import SqlTables

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from tracelens.storage.chunks import Predicate
    from tracelens.storage.tail import Tail

_PAGE = 1024
_NO_ID_FROM = 1 << 63
_SQL_ROWS = 1_000_000


def open_trace(
    path: str | os.PathLike[str],
    *,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    whole_shards: bool = True,
) -> TraceReader:
    """Open a trace directory.

    Args:
        path: the trace (``run.tltrace``).
        memory_limit_bytes: memory that DuckDB may use for one trace.
        whole_shards: read the ops of small shards into memory, which pays when many questions
            follow. The first page is there sooner, and in less memory, without.

    Raises:
        TraceError: no trace is there, it is of a newer format, or its manifest is torn. Other
            damage does not raise: ``health()`` tells it.
    """
    return TraceReader(
        open_catalog(path), memory_limit_bytes=memory_limit_bytes, whole_shards=whole_shards
    )


class TraceReader:
    """One open trace. It never writes to it. Use it from one thread, or one reader a thread.

    Attributes:
        path: the trace directory, absolute.
        manifest: what is true of the whole run.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        whole_shards: bool = True,
    ) -> None:
        self._whole_shards = whole_shards
        self._memory_limit_bytes = memory_limit_bytes
        self._use(catalog)

    def _use(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.path: Path = catalog.run_dir
        self.manifest: Manifest = catalog.manifest
        self._sql = SqlTables(catalog, self._memory_limit_bytes)
        self._readers = [
            ShardReader(shard, self._sql, whole=self._whole_shards) for shard in catalog.shards
        ]
        self._sql.readers = self._readers
        self._events = EventStore(self._readers)

    def refresh(self) -> None:
        """Look again at a trace that is being written."""
        self._sql.close()
        self._use(open_catalog(self.path))

    def close(self) -> None:
        """Give back memory and files; idempotent."""
        self._sql.close()

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def shards(self) -> list[ShardState]:
        """Return every shard's own account of itself, by rank and attempt."""
        return [shard.state for shard in self._catalog.shards]

    def ranks(self) -> list[int]:
        """Return the ranks that left a shard, ascending."""
        return sorted({shard.state.rank for shard in self._catalog.shards})

    @property
    def alive(self) -> bool:
        """Whether a writer of the trace still ran when it was opened or refreshed."""
        return any(shard.alive for shard in self._catalog.shards)

    def clock_offset_ns(self, rank: int) -> int:
        """Return what to add to a rank's times to align them with rank 0."""
        reader = self._of_rank(rank)
        return reader.shard.state.clock_offset_ns if reader else 0

    def health(self) -> Health:
        """Return what is wrong with the trace; looks into rings, not into every segment."""
        shards = tuple(reader.health() for reader in self._readers)
        problems = [*self._catalog.problems]
        for reader in self._readers:
            problems += reader.problems
        problems += self._events.problems
        return Health(shards, tuple(dict.fromkeys(problems)))

    def op(self, op_id: int, rank: int = 0) -> Op | None:
        """Return one op, ``None`` if it was not recorded."""
        reader = self._of_rank(rank) if 0 <= op_id < _NO_ID_FROM else None
        return reader.op(op_id) if reader else None

    def ops(
        self,
        *,
        rank: int = 0,
        step: int | None = None,
        after_op_id: int = -1,
        limit: int = 200,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> list[Op]:
        """Return a page of ops, ascending by id.

        Args:
            rank: whose ops.
            step: of one step only (short for ``first_step = last_step = step``).
            after_op_id: the last id of the page before.
            limit: ops to return at most.
            first_step: leave out earlier steps.
            last_step: leave out later steps.
        """
        if step is not None:
            first_step = last_step = step
        reader = self._of_rank(rank)
        return reader.page(after_op_id, limit, first_step, last_step) if reader else []

    def iter_ops(
        self, first_step: int | None = None, last_step: int | None = None, *, rank: int = 0
    ) -> Iterator[Op]:
        """Yield a rank's ops, ascending by id, a page in memory at a time."""
        last = -1
        while page := self.ops(
            rank=rank, after_op_id=last, limit=_PAGE, first_step=first_step, last_step=last_step
        ):
            yield from page
            last = page[-1].op_id

    def count_ops(self, rank: int = 0, step: int | None = None) -> int:
        """Return how many ops a rank recorded, in one step if given."""
        reader = self._of_rank(rank)
        return reader.count(step) if reader else 0

    def ops_at(self, start: int, stop: int, *, rank: int = 0, step: int | None = None) -> list[Op]:
        """Return the ops at positions ``[start, stop)`` of a rank's ops in order of their ids."""
        reader = self._of_rank(rank)
        if reader is None or stop <= start:
            return []
        before = reader.id_before(start, step)
        return reader.page(before, stop - start, step, step)

    def position(self, op_id: int, rank: int = 0) -> int:
        """Return how many ops of a rank have smaller ids: the position that ``ops_at`` takes."""
        reader = self._of_rank(rank)
        return reader.position(op_id) if reader else 0

    def find(
        self,
        predicate: Predicate,
        *,
        rank: int = 0,
        after: int | None = None,
        before: int | None = None,
        until: int | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
        limit: int = 1,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Found:
        """Find the nearest ops of a rank that satisfy a condition.

        Columns are read a file at a time, and only those that the condition names; a search ends
        at the first file that settles it.

        Args:
            predicate: the condition (``filters.compile``).
            rank: whose ops.
            after: search upwards from this op id (it is left out); from the start if neither
                ``after`` nor ``before`` is given.
            before: search downwards from this op id (it is left out).
            until: the last op id to look at, in the direction of the search.
            first_step: leave out files that hold only earlier training steps; the condition itself
                has to leave out ops.
            last_step: leave out files that hold only later ones.
            limit: ids to return at most.
            progress: told, between files, ops looked at and ops to look at.
            cancelled: asked between files; true ends the search.
        """
        reader = self._of_rank(rank)
        if reader is None:
            return Found((), True, 0)
        return reader.search.find(
            predicate,
            after=after,
            before=before,
            until=until,
            first_step=first_step,
            last_step=last_step,
            limit=limit,
            progress=progress,
            cancelled=cancelled,
        )

    def hits(self, step: int | None = None, rank: int = 0) -> list[int]:
        """Return ids of ops whose output was non-finite, in order; of all steps if ``None``."""
        reader = self._of_rank(rank)
        return reader.hits(step) if reader else []

    def parents(self, op_id: int, rank: int = 0) -> list[Op]:
        """Return the composite ops around an op, innermost first."""
        chain: list[Op] = []
        op = self.op(op_id, rank)
        # A parent's id is below its child's, which also ends a damaged chain.
        while op is not None and 0 <= op.parent_id < op.op_id:
            op = self.op(op.parent_id, rank)
            if op is not None:
                chain.append(op)
        return chain

    def children(self, op_id: int, rank: int = 0, limit: int = 1000) -> list[Op]:
        """Return the ops that a composite op called, in order."""
        reader = self._of_rank(rank)
        parent = reader.op(op_id) if reader else None
        if reader is None or parent is None:
            return []
        ops = (reader.op(child) for child in reader.children(parent, limit))
        return [op for op in ops if op is not None]

    def producers(self, op_id: int, rank: int = 0) -> list[Op | None]:
        """Return, for each input of an op, the op that wrote it (``None``: none recorded)."""
        op = self.op(op_id, rank)
        if op is None:
            return []
        return [
            self.op(tensor.value_id >> SLOT_BITS, rank) if tensor.value_id >= 0 else None
            for tensor in op.inputs
        ]

    def consumers(self, value_id: int, limit: int = 64, rank: int = 0) -> list[int]:
        """Return ids of the ops that read a value, in order, at most ``limit``."""
        reader = self._of_rank(rank)
        known = reader is not None and 0 <= value_id < _NO_ID_FROM
        return reader.consumers(value_id, limit) if reader and known else []

    def steps(
        self, first: int | None = None, last: int | None = None, *, rank: int | None = None
    ) -> list[dict[str, Any]]:
        """Return step events (``step start_ns duration_ns n_ops hits scalars rank``), in order."""
        return self._events.steps(first, last, rank)

    def events(self, kind: str | None = None, *, rank: int | None = None) -> list[dict[str, Any]]:
        """Return events (``t`` is the kind: ``step sink finding note data``), in order."""
        return self._events.events(kind, rank)

    def sinks(self, rank: int | None = None) -> list[dict[str, Any]]:
        """Return where non-finite values reached something that matters, in order."""
        return self.events("sink", rank=rank)

    def findings(self, rank: int | None = None) -> list[dict[str, Any]]:
        """Return the findings stored while recording, in order."""
        return self.events("finding", rank=rank)

    def notes(self, rank: int | None = None) -> list[dict[str, Any]]:
        """Return remarks stored while recording, in order."""
        return self.events("note", rank=rank)

    def tensors(self) -> list[dict[str, Any]]:
        """Return what is known of each stored tensor (columns of the table ``tensors``)."""
        from tracelens.storage.values import list_tensors

        return list_tensors(self._readers)

    def tensor(self, name: str, step: int | None = None, rank: int = 0) -> NDArray[Any]:
        """Return a stored tensor, mapped from its file: slices read only what they touch.

        Args:
            name: the name it was stored under.
            step: its step; the last one stored if ``None``.
            rank: whose.

        Raises:
            TraceError: there is no such tensor, or its file is damaged.
        """
        from tracelens.storage.values import map_tensor

        return map_tensor(self._catalog, self._readers, name, step, rank)

    def tensor_of(self, row: dict[str, Any]) -> NDArray[Any]:
        """Map the tensor of one row of ``tensors()``.

        Raises:
            TraceError: its file is missing or damaged.
        """
        from tracelens.storage.values import map_row

        return map_row(self._catalog, row)

    def group(self, by: str | Sequence[str] = "name", *, limit: int = 1000) -> list[dict[str, Any]]:
        """Count and sum ops by one or more columns; most ops first.

        Args:
            by: columns of ``ops`` (``name``, ``module``, ``phase``, ``step``, ``rank`` …).
            limit: groups to return at most.

        Returns:
            One dict a group: the columns, ``n_ops``, ``duration_ns`` (``None``: not measured),
            ``nan_ops`` (ops whose first output held a NaN or Inf).
        """
        return self._sql.group([by] if isinstance(by, str) else list(by), limit)

    def top(self, n: int = 20, by: str = "duration_ns") -> list[dict[str, Any]]:
        """Return the ``n`` op names with the largest total of a column of ``ops``."""
        return self._sql.top(n, by)

    def first_bad(self) -> Op | None:
        """Return the op that, of all ranks on the aligned clock, first had a non-finite output."""
        best: tuple[int, Op] | None = None
        for reader in self._readers:
            for op_id in reader.hits(None)[:1]:
                op = reader.op(op_id)
                if op is None:
                    continue
                start_ns = op.start_ns + reader.shard.state.clock_offset_ns
                if best is None or start_ns < best[0]:
                    best = start_ns, op
        return best[1] if best else None

    def sql(self, text: str) -> list[Row]:
        """Run one SELECT and return all its rows (at most a million).

        Raises:
            QueryRefused: it is not one SELECT, or it failed; one line.
        """
        return self.select(text, limit=_SQL_ROWS, timeout_s=600.0).rows

    def select(self, text: str, *, limit: int, timeout_s: float) -> QueryResult:
        """Run one SELECT with a limit on rows and seconds (``query.run_query`` has defaults).

        Raises:
            QueryRefused: it is not one SELECT, it failed, or it took too long. One line.
        """
        return self._sql.database_with_views().select(text, limit=limit, timeout_s=timeout_s)

    def arrow(self, text: str, *, timeout_s: float = 600.0) -> pa.Table:
        """Run one SELECT and return all its rows as an Arrow table.

        Raises:
            QueryRefused: it is not one SELECT, it failed, or it took too long. One line.
        """
        return self._sql.database_with_views().arrow(text, timeout_s=timeout_s)

    def scan(
        self, table: str, columns: Sequence[str], first_step: int | None, last_step: int | None
    ) -> Iterator[list[Row]]:
        """Yield a table's rows in blocks, shard by shard and file by file (used by exports)."""
        return self._sql.scan(table, columns, first_step, last_step)

    def columns(
        self,
        table: str,
        names: Sequence[str],
        *,
        rank: int | None = None,
        steps: tuple[int | None, int | None] | None = None,
    ) -> pa.Table:
        """Return whole columns of a table, as analyses want them.

        Args:
            table: the table.
            names: its columns.
            rank: of one rank only: the last attempt that recorded anything, since ids are unique in
                a shard only; the rows of all shards if ``None``.
            steps: first step and the one after the last, ``None`` where open.

        Raises:
            ConfigError: there is no such table or column.
        """
        from tracelens.storage.columnread import read_columns

        return read_columns(self._readers, table, names, rank=rank, steps=steps)

    def column_parts(
        self,
        table: str,
        names: Sequence[str],
        *,
        rank: int | None = None,
        steps: tuple[int | None, int | None] | None = None,
    ) -> Iterator[pa.Table]:
        """Yield columns of a table shard by shard, so that one is in memory at a time.

        Args:
            table: the table.
            names: its columns.
            rank: of this rank's shards only, all its attempts.
            steps: first step and the one after the last, ``None`` where open.

        Raises:
            ConfigError: there is no such table or column.
        """
        from tracelens.storage.columnread import read_columns

        for reader in self._readers:
            if rank is None or reader.shard.state.rank == rank:
                yield read_columns([reader], table, names, steps=steps)

    def tail(self) -> Tail:
        """Follow a trace that is being written: ``poll()`` returns what is new."""
        from tracelens.storage.tail import Tail

        return Tail(self.path)

    def _of_rank(self, rank: int) -> ShardReader | None:
        """Return the shard that speaks for a rank: its last attempt that has any op.

        Op ids are unique in a shard only, so the ops of two attempts are never mixed.
        """
        shards = [r for r in self._readers if r.shard.state.rank == rank]
        # Helper processes (``-d1``) come after the process that forked them.
        shards.sort(key=lambda r: ("-d" not in r.shard.name, r.shard.state.attempt))
        chosen = [reader for reader in shards if reader.has_ops()] or shards
        return chosen[-1] if chosen else None
