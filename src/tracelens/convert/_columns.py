"""Columns that grow row by row, for importers of recordings that are not columns already."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.storage.columns import Coded, Masked

UNNAMED = "(unnamed)"
"""Name of what has an empty one."""
MISSING = -(1 << 63)
"""Stands for NULL in a column of integers."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import.

    Attributes:
        ops: ops written.
        steps: steps found.
        findings: findings written.
        problems: what could not be read, a sentence each.
        kernels: kernels and copies written.
        rows: rows written of all tables.
    """

    ops: int = 0
    steps: int = 0
    findings: int = 0
    problems: tuple[str, ...] = ()
    kernels: int = 0
    rows: int = 0


class Texts:
    """Distinct strings, numbered in the order in which they came."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, text: str | None) -> int:
        """Return a string's number, -1 for ``None`` and the empty string."""
        if not text:
            return -1
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self.texts)
            # JSON can escape lone surrogates, which Parquet's UTF-8 cannot hold.
            self.texts.append(text.encode("utf-8", "replace").decode())
        return code


class Rows:
    """Rows of one table, 8 bytes a number.

    Args:
        numbers: names of columns of integers; ``None`` in them is NULL.
        texts: names of columns of strings.
        floats: names of columns of floats; ``None`` in them is NULL.
    """

    def __init__(
        self, numbers: Sequence[str], texts: Sequence[str] = (), floats: Sequence[str] = ()
    ) -> None:
        self._numbers = {name: array("q") for name in numbers}
        self._codes = {name: array("i") for name in texts}
        self._floats = {name: array("d") for name in floats}
        self._texts = {name: Texts() for name in texts}
        self._n_numbers = len(self._numbers)
        # What a row calls, bound once.
        self._number_parts = [part.append for part in self._numbers.values()]
        self._text_parts = [
            (self._codes[name].append, self._texts[name].code) for name in self._codes
        ]
        self._float_parts = [part.append for part in self._floats.values()]

    def __len__(self) -> int:
        return len(next(iter(self._numbers.values())))

    def add(self, *values: Any) -> None:
        """Add a row: numbers, then texts, then floats, each in the order they were named.

        Raises:
            TypeError: one is of another type; no part of the row is kept.
            OverflowError: one is larger than 64 bits.
        """
        try:
            for append, value in zip(self._number_parts, values, strict=False):
                append(MISSING if value is None else value)
            at = self._n_numbers
            for append, code in self._text_parts:
                append(code(values[at]))
                at += 1
            for append in self._float_parts:
                value = values[at]
                append(math.nan if value is None else value)
                at += 1
        except (TypeError, OverflowError):
            self._even()
            raise

    def _even(self) -> None:
        """Take back a row of which only the first columns were written."""
        parts: list[array[Any]] = [
            *self._numbers.values(),
            *self._codes.values(),
            *self._floats.values(),
        ]
        rows = min(map(len, parts))
        for part in parts:
            del part[rows:]

    def number(self, name: str) -> NDArray[np.int64]:
        """Return a column of integers, NULL as ``MISSING``, shape (rows,)."""
        return np.array(self._numbers[name], dtype=np.int64)

    def codes(self, name: str) -> NDArray[np.int32]:
        """Return the numbers of a column's strings, shape (rows,)."""
        return np.array(self._codes[name], dtype=np.int32)

    def texts(self, name: str) -> list[str]:
        """Return the distinct strings of a column."""
        return self._texts[name].texts

    def rename(self, column: str, text: str, new: str) -> None:
        """Replace a string of a column by another that the column does not have."""
        known = self._texts[column]
        known.texts = [new if each == text else each for each in known.texts]

    def columns(
        self,
        order: NDArray[np.int64] | None = None,
        **replaced: Any,
    ) -> dict[str, Any]:
        """Return the columns as ``BulkShard.write`` takes them.

        Args:
            order: which rows, in which order; all if absent.
            replaced: columns that are given instead, already in that order.
        """
        chosen: Any = slice(None) if order is None else order
        found: dict[str, Any] = {}
        for name in self._numbers:
            found[name] = masked(self.number(name)[chosen])
        for name in self._codes:
            found[name] = Coded(self.codes(name)[chosen], self.texts(name))
        for name, part in self._floats.items():
            values = np.array(part, dtype=np.float64)[chosen]
            found[name] = Masked(values, np.isnan(values))
        return {**found, **replaced}


def masked(values: NDArray[np.int64]) -> NDArray[np.int64] | Masked:
    """Return integers as a column: with NULLs where there is ``MISSING``."""
    null = values == MISSING
    return Masked(np.where(null, 0, values), null) if null.any() else values


def parents(
    thread: NDArray[np.int64], start_ns: NDArray[np.int64], end_ns: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return, for each range, the row of the innermost one around it on its thread, or -1.

    Args:
        thread: shape (rows,).
        start_ns: shape (rows,).
        end_ns: shape (rows,); a range that ends after another is not inside it.
    """
    found = np.full(len(start_ns), -1, dtype=np.int64)
    order = np.lexsort((np.arange(len(start_ns)), -end_ns, start_ns, thread))
    stack: list[tuple[int, int]] = []
    last = None
    for row, tid, begin, end in zip(
        order.tolist(),
        thread[order].tolist(),
        start_ns[order].tolist(),
        end_ns[order].tolist(),
        strict=True,
    ):
        if tid != last:
            stack.clear()
            last = tid
        while stack and stack[-1][1] <= begin:
            stack.pop()
        for around, its_end in reversed(stack):
            if its_end >= end:
                found[row] = around
                break
        stack.append((row, end))
    return found


def nearest(parent: NDArray[np.int64], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each row, the nearest of the rows around it that is wanted, or -1.

    Args:
        parent: what ``parents`` returns, shape (rows,).
        wanted: shape (rows,).
    """
    found: NDArray[np.int64] = parent.copy()
    while True:
        on = np.flatnonzero(found >= 0)
        on = on[~wanted[found[on]]]
        if not len(on):
            return found
        found[on] = parent[found[on]]


def positions(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row's position among the rows of its step, in the order they are in.

    Examples:
        >>> positions(np.array([0, 0, 1, 0])).tolist()
        [0, 1, 0, 2]
    """
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    firsts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(steps) else order
    counts = np.diff(np.r_[firsts, len(steps)])
    found = np.empty(len(steps), dtype=np.int64)
    found[order] = np.arange(len(steps)) - np.repeat(firsts, counts)
    return found


def step_of(times_ns: NDArray[np.int64], steps: Sequence[Mapping[str, int]]) -> NDArray[np.int64]:
    """Return the step in whose window each time lies, -1 outside of all, shape of ``times_ns``.

    Args:
        times_ns: any shape.
        steps: ``step``, ``start_ns``, ``duration_ns`` of each, in order of time.
    """
    if not steps:
        return np.full(times_ns.shape, -1, dtype=np.int64)
    starts = np.array([each["start_ns"] for each in steps], dtype=np.int64)
    ends = starts + np.array([each["duration_ns"] for each in steps], dtype=np.int64)
    numbers = np.array([each["step"] for each in steps], dtype=np.int64)
    at = np.searchsorted(starts, times_ns, side="right") - 1
    inside = (at >= 0) & (times_ns < ends[at])
    found = np.full(times_ns.shape, -1, dtype=np.int64)
    found[inside] = numbers[at[inside]]
    return found
