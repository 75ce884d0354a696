"""Columns of ops, a block of rows at a time: what a search looks at without building ops.

A text column is handed out as codes into its distinct values, so that a pattern is matched once
per distinct name and not once per op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tracelens.storage.parquet_files import read_file
from tracelens.storage.segment_files import SegmentFile

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
else:
    from tracelens.lazy import np

Texts: TypeAlias = "tuple[NDArray[np.int64], list[str]]"
"""Codes (-1: the text is unknown) and the distinct texts they stand for."""


class Chunk(Protocol):
    """Some ops as columns; names are those of the table ``ops``."""

    def __len__(self) -> int:
        """Return how many ops it holds."""

    def texts(self, column: str) -> Texts:
        """Return a text column: codes of shape (len,) and the distinct texts."""

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a numeric column, NaN where the number is unknown."""

    def integers(self, column: str) -> NDArray[np.int64]:
        """Return a whole-number column, -1 where the number is unknown."""

    def lists_hold(self, column: str, value: int) -> NDArray[np.bool_]:
        """Tell for each op whether a list column holds a value."""


class Predicate(Protocol):
    """A condition on ops that can be asked of many at once."""

    def mask(self, chunk: Chunk) -> NDArray[np.bool_]:
        """Return which ops of a chunk satisfy it, shape (len,)."""


class ArrowChunk:
    """Ops of one segment or ring as Arrow columns, each read when it is first asked for.

    Args:
        rows: how many ops.
        load: reads one column.

    Unlike a table, it forgets nothing it has read: searches ask for the same few columns again.
    """

    def __init__(self, rows: int, load: Callable[[str], pa.ChunkedArray]) -> None:
        self._rows = rows
        self._load = load
        self._columns: dict[str, pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return self._rows

    def texts(self, column: str) -> Texts:
        """Return a text column: codes of shape (len,) and the distinct texts."""
        array = self._column(column).combine_chunks()
        codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, [str(text) for text in array.dictionary.to_pylist()]

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a numeric column, NaN where the number is unknown."""
        values = self._column(column).to_numpy()
        return values.astype(np.float64, copy=False)  # type: ignore[no-any-return]

    def integers(self, column: str) -> NDArray[np.int64]:
        """Return a whole-number column, -1 where the number is unknown."""
        values = self._column(column).fill_null(-1).to_numpy()
        return values.astype(np.int64, copy=False)  # type: ignore[no-any-return]

    def lists_hold(self, column: str, value: int) -> NDArray[np.bool_]:
        """Tell for each op whether a list column holds a value."""
        lists = self._column(column).combine_chunks()
        found = lists.flatten().to_numpy(zero_copy_only=False) == value
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        owners = np.repeat(np.arange(self._rows), lengths)
        mask = np.zeros(self._rows, dtype=np.bool_)
        mask[owners[found]] = True
        return mask

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self._columns:
            self._columns[name] = self._load(name)
        return self._columns[name]


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A chunk that need not be read yet.

    Attributes:
        rows: ops in it.
        op_lo: no op in it has a smaller id.
        op_hi: no op in it has a larger id.
        load: reads it; ``None`` if the file is damaged.
        key: what tells it from others in a cache.
        damaged: told why a column of it could not be read.
        step_lo: no op in it is of an earlier step.
        step_hi: no op in it is of a later step.
    """

    rows: int
    op_lo: int
    op_hi: int
    load: Callable[[], Chunk | None]
    key: object
    damaged: Callable[[str], None]
    step_lo: int = 0
    step_hi: int = 1 << 62


def table_chunk(table: pa.Table, key: object) -> list[ChunkRef]:
    """Return the chunk of a table in memory; none if it is empty."""
    if not table.num_rows:
        return []
    chunk = ArrowChunk(table.num_rows, table.column)
    ids = chunk.integers("op_id")
    return [ChunkRef(len(chunk), int(ids.min()), int(ids.max()), lambda: chunk, key, _sound)]


def file_chunk(file: SegmentFile) -> ArrowChunk:
    """Return a chunk over a segment; a damaged column raises ``DamagedSegmentError`` when read."""
    return ArrowChunk(file.rows, lambda name: read_file(file, [name]).column(name))


def _sound(reason: str) -> None:
    """Take note of damage to a table in memory: there is none."""
