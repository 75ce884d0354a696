"""Columns of tables from numbers of texts and places of ranges, a slice of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.storage.columns import Coded, Masked

SLICE_ROWS = 1 << 17
"""Rows gathered and written at a time."""

_COLLECTIVE = (
    "allreduce", "allgather", "reducescatter", "alltoall", "broadcast", "sendrecv", "reduce",
    "gather", "scatter", "barrier", "send", "recv",
)  # fmt: skip


class CollectiveNames:
    """Tells the collective of a kernel by its name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._known: dict[int, str | None] = {}

    def __call__(self, name: int) -> str | None:
        """Return the collective that a name's number stands for, ``None`` for none."""
        if name not in self._known:
            text = self._names[name].lower().replace("_", "")
            self._known[name] = next((each for each in _COLLECTIVE if each in text), None)
        return self._known[name]


class Coder:
    """Gives columns of texts that are looked up by another number than their own."""

    def __init__(self, texts: Sequence[str]) -> None:
        known: dict[str, int] = {}
        codes = [known.setdefault(text, len(known)) for text in texts]
        self._codes = np.array([*codes, -1], dtype=np.int32)
        self._texts = list(known)

    def __call__(self, numbers: NDArray[Any]) -> Coded:
        """Return the texts of numbers as a column; -1 is NULL."""
        return coded(self._codes[numbers], self._texts)


def coded(numbers: NDArray[Any], texts: Sequence[str]) -> Coded:
    """Return a column of texts that holds only those that it has; a number below 0 is NULL."""
    used = np.zeros(len(texts) + 1, dtype=np.bool_)
    used[numbers] = True
    used[-1] = False
    place = np.cumsum(used, dtype=np.int32) - 1
    place[-1] = -1
    return Coded(place[numbers], [texts[at] for at in np.flatnonzero(used).tolist()])


def args_text(names: Sequence[str], values: Sequence[Any]) -> str:
    """Return what else is told as JSON; what is not told is left out."""
    told = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in zip(names, values, strict=True)
        if value is not None and value != ""
    }
    return json.dumps(told, separators=(", ", ": "))


def words(values: Iterable[str | None]) -> Coded:
    """Return strings as a column; ``None`` and the empty string are NULL."""
    known: dict[str, int] = {}
    codes = [known.setdefault(value, len(known)) if value else -1 for value in values]
    return Coded(np.array(codes, dtype=np.int32), list(known))


def ids_at(ids: NDArray[np.int32], places: NDArray[Any]) -> Masked:
    """Return the ids at places as a column; NULL for place -1."""
    if not len(ids):
        return Masked(np.zeros(len(places), dtype=np.int64), np.ones(len(places), dtype=np.bool_))
    found = np.where(places >= 0, ids[places], -1)
    return Masked(found.clip(0), found < 0)


def slices(rows: int) -> Iterator[slice]:
    """Yield the rows of a table, ``SLICE_ROWS`` at a time."""
    for start in range(0, rows, SLICE_ROWS):
        yield slice(start, min(rows, start + SLICE_ROWS))
