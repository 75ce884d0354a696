"""One table of a trace as numpy columns, each read when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis.profile.intervals import Ints
from tracelens.errors import TraceError
from tracelens.events import OpFlag
from tracelens.storage.arrays import to_numpy

if TYPE_CHECKING:
    import pyarrow as pa

    from tracelens.storage.reader import TraceReader

Steps = tuple[int | None, int | None]
"""First step and the one after the last; ``None`` where open."""


LIMITS = {
    "start_ns": 1 << 60,
    "t_ns": 1 << 60,
    "duration_ns": 1 << 53,
    "size_bytes": 1 << 53,
}
"""What times and sizes can be at most: 36 years after the epoch, 104 days, 8 PiB."""


class Columns:
    """The rows of one table, without any Python object per row.

    Of ops that were recorded and profiled at once, the profiled ones alone are seen.

    Args:
        reader: an open trace; it must stay open.
        table: the table.
        rank: whose rows.
        steps: rows of these training steps only.

    Raises:
        TraceError: a file of the table is damaged so that only some of its columns can be read.
    """

    def __init__(
        self, reader: TraceReader, table: str, rank: int, steps: Steps | None = None
    ) -> None:
        self.table = table
        self._reader = reader
        self._rank = rank
        self._steps = steps
        self._length: int | None = None
        self._ints: dict[str, Ints] = {}
        self._texts: dict[str, tuple[Ints, list[str]]] = {}

    @cached_property
    def _rows(self) -> int:
        first = {"memory": "t_ns", "samples": "duration_ns", "counters": "t_ns"}
        return len(self.ints(first.get(self.table, "start_ns")))

    def __len__(self) -> int:
        return self._rows

    def ints(self, name: str) -> Ints:
        """Return a column of whole numbers, int64 of shape (rows,); NULL is -1."""
        if name not in self._ints:
            values = to_numpy(self._column(name))
            self._ints[name] = _plausible(name, values.astype(np.int64, copy=False))
        return self._ints[name]

    def floats(self, name: str) -> NDArray[np.float64]:
        """Return a column of numbers, float64 of shape (rows,); NULL is NaN."""
        values: NDArray[Any] = to_numpy(self._column(name), np.nan)
        return values.astype(np.float64, copy=False)

    def codes(self, name: str) -> Ints:
        """Return a text column as positions in ``texts(name)``; int64 of shape (rows,), -1 NULL."""
        return self._text(name)[0]

    def texts(self, name: str) -> list[str]:
        """Return the distinct texts of a column."""
        return self._text(name)[1]

    def is_one_of(self, name: str, wanted: Sequence[str]) -> NDArray[np.bool_]:
        """Return which rows have one of some texts in a column; bool of shape (rows,)."""
        return self.where(name, [text in wanted for text in self.texts(name)])

    def where(self, name: str, holds: Sequence[bool]) -> NDArray[np.bool_]:
        """Return which rows have a text for which ``holds`` is true; NULL never has."""
        # The entry at the end is what code -1, NULL, finds.
        return np.array([*holds, False], dtype=np.bool_)[self.codes(name)]

    def _text(self, name: str) -> tuple[Ints, list[str]]:
        if name not in self._texts:
            array = self._column(name).combine_chunks()
            codes = to_numpy(array.indices).astype(np.int64)
            self._texts[name] = _distinct(codes, [t or "" for t in array.dictionary.to_pylist()])
        return self._texts[name]

    def _column(self, name: str) -> pa.ChunkedArray:
        column = self._read(name)
        self._length = len(column) if self._length is None else self._length
        if len(column) != self._length:
            raise TraceError(
                f"the columns of {self.table} do not have the same number of rows: run "
                "tracelens verify"
            )
        return column if self._profiled is None else column.filter(self._profiled)

    def _read(self, name: str) -> pa.ChunkedArray:
        table = self._reader.columns(self.table, [name], rank=self._rank, steps=self._steps)
        return table.column(name)

    @cached_property
    def _profiled(self) -> pa.Array | None:
        """Which ops a profiler told of, where a trace holds the same ops as recorded, too."""
        if self.table != "ops":
            return None
        import pyarrow as pa

        seen = (to_numpy(self._read("flags")) & int(OpFlag.PROFILED)) != 0
        return pa.array(seen) if seen.any() and not seen.all() else None


def _plausible(name: str, values: Ints) -> Ints:
    """Limit times and sizes that only a damaged trace has, so that no sum of them overflows."""
    limit = LIMITS.get(name)
    if limit is None or not len(values) or -limit <= values.min() <= values.max() <= limit:
        return values
    return np.clip(values, -limit, limit)


def durations(columns: Columns) -> Ints:
    """Return the durations of rows; 0 where not measured. Shape (rows,), ns."""
    return np.maximum(columns.ints("duration_ns"), 0)


def rows_of(ids: Ints, wanted: Ints) -> Ints:
    """Return where ids stand in a column of distinct ids; -1 for those that do not.

    Args:
        ids: shape (n,), distinct, in any order.
        wanted: shape (m,).
    """
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    low, high = int(ids[0]), int(ids[-1])
    if high - low + 1 == len(ids) and (ids[1:] > ids[:-1]).all():
        return np.where((wanted >= low) & (wanted <= high), wanted - low, -1)
    order = None if (ids[1:] > ids[:-1]).all() else np.argsort(ids, kind="stable")
    ordered = ids if order is None else ids[order]
    at = np.minimum(np.searchsorted(ordered, wanted), len(ids) - 1)
    found = ordered[at] == wanted
    return np.where(found, at if order is None else order[at], -1)


def _distinct(codes: Ints, texts: list[str]) -> tuple[Ints, list[str]]:
    """Give equal texts one code: what wrote the column need not have."""
    places = {text: place for place, text in reversed(list(enumerate(texts)))}
    if len(places) == len(texts):
        return codes, texts
    names = list(places)
    first = {text: place for place, text in enumerate(names)}
    mapped = np.array([*(first[text] for text in texts), -1], dtype=np.int64)
    return mapped[codes], names
