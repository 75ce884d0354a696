"""One shard's ops, wherever they are: sealed segments first, then the unsealed ring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tracelens.events import Op
from tracelens.storage.catalog import ShardFiles
from tracelens.storage.checksum import file_crc32
from tracelens.storage.chunks import ChunkRef, table_chunk
from tracelens.storage.health import Problem, ShardHealth
from tracelens.storage.opstores import OpStore, SegmentOps, TableOps, at
from tracelens.storage.parquet_files import DamagedSegmentError, empty_table, read_file
from tracelens.storage.rows import OP_COLUMNS, STAT_COLUMNS
from tracelens.storage.search import Search
from tracelens.storage.segment_files import SegmentFile
from tracelens.storage.segment_table import SegmentTable
from tracelens.storage.sql import Database

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tracelens.storage.live import LiveShard
else:
    from tracelens.lazy import np

SMALL_ROWS = 50_000
SMALL_BYTES = 8 << 20
"""Up to here a shard's ops are read whole by pyarrow: sooner than DuckDB answers one query."""


class DatabaseSource(Protocol):
    """Opens the trace's DuckDB connection when the first query needs it."""

    def database(self) -> Database:
        """Return the connection."""


class ShardReader:
    """Reads one shard; damaged segments are set aside and told in ``problems``.

    Args:
        shard: its files.
        source: opens the connection.
        whole: read its ops into memory if they are few.

    Attributes:
        shard: its files.
        problems: what was found wrong with them so far.
        search: finds ops by a condition.
    """

    def __init__(self, shard: ShardFiles, source: DatabaseSource, *, whole: bool = True) -> None:
        self.shard = shard
        self.problems: list[Problem] = []
        self._source = source
        self._whole = whole
        self._checked: set[SegmentFile] = set()
        self._live: LiveShard | None = None
        self._stores: list[OpStore] | None = None
        self._live_chunks: list[ChunkRef] | None = None
        self.search = Search(self._chunks)

    def segments(self, table: str) -> list[SegmentFile]:
        """Return the table's segments that are sound: each is checked when first asked for."""
        sound = []
        for file in self.shard.segments.get(table, ()):
            if file in self._checked or self._is_sound(file):
                self._checked.add(file)
                sound.append(file)
        if table in self.shard.segments:
            self.shard.segments[table] = sound
        return sound

    def quarantine(self, file: SegmentFile, reason: str) -> None:
        """Set a segment aside for as long as the trace is open."""
        remaining = [other for other in self.shard.segments.get(file.table, ()) if other != file]
        self.shard.segments[file.table] = remaining
        name = f"{file.table}/shard={file.shard}/{file.path.name}"
        message = f"{name}: {reason}; its {file.rows} rows are left out"
        self.problems.append(Problem("quarantined", self.shard.name, message, file.rows))

    def live(self) -> LiveShard | None:
        """Return the unsealed records, copied on first use; ``None`` for a closed shard."""
        if self.shard.ring is None and self.shard.kept is None:
            return None
        if self._live is None:
            from tracelens.storage.live import LiveShard

            self._live = LiveShard(self.shard)
            if self._live.problem is not None:
                self.problems.append(self._live.problem)
            if self._live.holes:
                self.problems.append(
                    Problem(
                        "holes",
                        self.shard.name,
                        f"{self._live.holes} records were reserved by a killed thread and never "
                        "written",
                        self._live.holes,
                    )
                )
        return self._live

    def health(self) -> ShardHealth:
        """Return the shard's line of the health table."""
        state = self.shard.state
        live = self.live()
        return ShardHealth(
            shard=state.shard,
            rank=state.rank,
            state=state.state if state.state != "live" or self.shard.alive else "killed",
            alive=self.shard.alive,
            segments=sum(len(files) for files in self.shard.segments.values()),
            sealed_records=state.records,
            tail_records=len(live.records) if live else 0,
            holes=live.holes if live else 0,
            dropped=state.dropped,
        )

    def has_ops(self) -> bool:
        """Whether any op may be found here."""
        return bool(self.shard.segments.get("ops")) or self.live() is not None

    def op(self, op_id: int) -> Op | None:
        """Return one op, ``None`` if it is not in this shard."""
        for store in self._open():
            op = store.op(op_id)
            if op is not None:
                return op
        return None

    def page(
        self, after_op_id: int, limit: int, first_step: int | None, last_step: int | None
    ) -> list[Op]:
        """Return up to ``limit`` ops above ``after_op_id``, ascending."""
        stores = self._open()
        pages = [store.page(after_op_id, limit, first_step, last_step) for store in stores]
        if len(pages) == 1:
            return pages[0]
        by_id = {op.op_id: op for page in reversed(pages) for op in page}
        return [by_id[op_id] for op_id in sorted(by_id)][:limit]

    def count(self, step: int | None) -> int:
        """Return how many ops there are, in one step if given."""
        return sum(store.count(step) for store in self._open())

    def id_before(self, position: int, step: int | None) -> int:
        """Return the id of the op before a position in the order of ids, -1 before the first."""
        stores = self._open()
        if position <= 0 or not stores:
            return -1
        if len(stores) == 1:
            return stores[0].id_at(position - 1, step)
        ids = np.sort(np.concatenate([store.ids(step) for store in stores]))
        return at(ids, position - 1)

    def position(self, op_id: int) -> int:
        """Return how many ops have smaller ids."""
        return sum(store.position(op_id) for store in self._open())

    def hits(self, step: int | None) -> list[int]:
        """Return ids of ops whose output was non-finite, ascending."""
        return _union([store.hits(step) for store in self._open()])

    def consumers(self, value_id: int, limit: int) -> list[int]:
        """Return ids of ops that read the value, ascending."""
        if value_id < 0:
            return []
        return _union([store.consumers(value_id, limit) for store in self._open()])[:limit]

    def children(self, parent: Op, limit: int) -> list[int]:
        """Return ids of ops that a composite op called, ascending."""
        return _union([store.children(parent, limit) for store in self._open()])[:limit]

    def _chunks(self) -> list[ChunkRef]:
        """Return all ops as chunks to search: sealed segments, then the unsealed ring."""
        refs: list[ChunkRef] = []
        for store in self._open():
            if isinstance(store, TableOps | SegmentOps):
                refs += store.chunks()
        live = self.live()
        if live is not None and len(live.records):
            if self._live_chunks is None:
                from tracelens.storage.encode import Encoder

                strings = live.strings
                table = Encoder(self.shard.state.rank, lambda: strings).tables(live.records)
                ops = table.get("ops")
                self._live_chunks = [] if ops is None else table_chunk(ops, "ring")
            refs += self._live_chunks
        return refs

    def _open(self) -> list[OpStore]:
        if self._stores is None:
            self._stores = self._make_stores()
        return self._stores

    def _make_stores(self) -> list[OpStore]:
        stores: list[OpStore] = []
        ops, stats = self.shard.segments.get("ops", []), self.shard.segments.get("stats", [])
        both = [*ops, *stats]
        small = (
            self._whole
            and sum(file.rows for file in both) <= SMALL_ROWS
            and sum(file.size_bytes for file in both) <= SMALL_BYTES
        )
        if ops and small:
            tables = [self._table("ops", OP_COLUMNS), self._table("stats", STAT_COLUMNS)]
            stores.append(TableOps(*tables))
        elif ops:
            stores.append(SegmentOps(self._segment_table("ops"), self._segment_table("stats")))
        live = self.live()
        if live is not None:
            stores.append(live.index)
        return stores

    def _segment_table(self, table: str) -> SegmentTable:
        files = self.shard.segments.get(table, ())
        return SegmentTable(table, files, self._source.database, self.quarantine)

    def _table(self, table: str, columns: Sequence[str]) -> pa.Table:
        """Read all sound segments of a small table; the others are set aside."""
        import pyarrow as pa

        parts = []
        for file in self.segments(table):
            try:
                parts.append(read_file(file, columns))
            except DamagedSegmentError as error:
                self.quarantine(file, str(error))
        if parts:
            return pa.concat_tables(parts).unify_dictionaries()
        return empty_table(table, columns)

    def _is_sound(self, file: SegmentFile) -> bool:
        """Compare the file with its checksum, or check its pages where the manifest has none."""
        try:
            if file.crc32 is not None:
                if file_crc32(file.path) != file.crc32:
                    raise DamagedSegmentError("its checksum does not match: bits have changed")
            else:
                read_file(file)
        except (DamagedSegmentError, OSError) as error:
            self.quarantine(file, str(error))
            return False
        return True


def _union(parts: list[list[int]]) -> list[int]:
    return parts[0] if len(parts) == 1 else sorted(set().union(*parts))
