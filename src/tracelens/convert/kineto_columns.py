"""Collects events of a Chrome trace as columns of numbers, some thousands of events at a time.

Texts are numbered as they come, so a row costs a few dozen bytes however long its names are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
T = TypeVar("T", bound=Hashable)


class Distinct:
    """Distinct values, numbered in the order in which they came.

    Examples:
        >>> names = Distinct()
        >>> names.codes(["a", "b", "a"]).tolist(), names.values
        ([0, 1, 0], ['a', 'b'])
    """

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def values(self) -> list[Any]:
        """The distinct values, by number."""
        return list(self._codes)

    def codes(self, values: Sequence[T]) -> Codes:
        """Return the numbers of values, shape (values,)."""
        known = self._codes
        for value in dict.fromkeys(values):
            if value not in known:
                known[value] = len(known)
        return np.fromiter(map(known.__getitem__, values), dtype=np.int32, count=len(values))

    def code(self, value: Hashable) -> int:
        """Return one value's number."""
        return self._codes.setdefault(value, len(self._codes))

    def texts(self, raws: Iterable[Raw]) -> Codes:
        """Return the numbers of JSON texts, -1 for none."""
        values = list(map(bytes, raws))
        codes = self.codes(values)
        empty = self._codes.get(b"")
        return codes if empty is None else np.where(codes == empty, -1, codes).astype(np.int32)


class Table:
    """Columns of one kind of events, in parts of which each is an array."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._types = {name: np.dtype(kind) for name, kind in columns.items()}
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
        self.rows = 0

    def add(self, rows: int, **columns: Any) -> None:
        """Add rows.

        Args:
            rows: how many.
            columns: of each column an array of that many, or a list, or one number for all.
        """
        for name, kind in self._types.items():
            given = columns[name]
            if isinstance(given, np.ndarray):
                part = given.astype(kind, copy=False)
            elif isinstance(given, int | float):
                # A view of one number: a column that no event has costs nothing.
                part = np.broadcast_to(np.array(given, dtype=kind), rows)
            else:
                part = numbers(given, kind)
            self._parts[name].append(part)
        self.rows += rows

    def take(self, name: str) -> NDArray[Any]:
        """Return a column whole, shape (rows,)."""
        parts = self._parts[name]
        if len(parts) != 1:
            self._parts[name] = [self._joined(parts, self._types[name])]
        return self._parts[name][0]

    def drop(self, name: str) -> NDArray[Any]:
        """As ``take``; the column is forgotten."""
        whole = self.take(name)
        self._parts[name] = []
        return whole

    def _joined(self, parts: list[NDArray[Any]], kind: np.dtype[Any]) -> NDArray[Any]:
        if not parts:
            return np.zeros(0, dtype=kind)
        if all(part.strides == (0,) and part[0] == parts[0][0] for part in parts if len(part)):
            return np.broadcast_to(parts[0][0], self.rows)
        return np.concatenate(parts)

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Forget the rows that are not marked."""
        for name in self._types:
            self._parts[name] = [self.take(name)[rows]]
        self.rows = int(rows.sum())


def numbers(values: Sequence[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers as an array; whole numbers beyond its range wrap to it."""
    try:
        return np.array(values, dtype=kind)
    except (OverflowError, ValueError):
        bits = 8 * kind.itemsize
        low = 1 << (bits - 1)
        wrapped = [(int(value) + low) % (1 << bits) - low for value in values]
        return np.array(wrapped, dtype=kind)


def thread_number(value: Any) -> int | str:
    """Return a process or thread id as a number where it is one, as ``"25738"`` and ``"stream 7"``.

    Examples:
        >>> thread_number("25738"), thread_number("stream 7"), thread_number("Spans"), \
            thread_number(3.0), thread_number(None)
        (25738, 7, 'Spans', 3, 0)
    """
    if isinstance(value, int):
        return value
    if value is None:
        return 0
    if isinstance(value, float):
        return int(value) if value == value and abs(value) < 1e18 else 0
    text = str(value).removeprefix("stream ").strip()
    return int(text) if text.lstrip("-").isdigit() and len(text) < 20 and text.isascii() else text


def none_as(values: Iterable[Any], other: Any) -> list[Any]:
    """Return values with ``None`` replaced."""
    return [other if value is None else value for value in values]


def constant(value: Any, rows: int) -> list[Any]:
    """Return a value as many times as there are rows."""
    return list(repeat(value, rows))
