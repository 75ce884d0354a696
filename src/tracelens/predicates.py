"""Conditions on ops: each can be asked of columns, and written as SQL, with the same answer.

A comparison with something unknown (a statistic that was not measured) is false, and its negation
true: there is no third truth value.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tracelens.events import SLOT_BITS
from tracelens.storage.chunks import Chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from tracelens.lazy import np

Mask: TypeAlias = "NDArray[np.bool_]"
Sql = tuple[str, list[Any]]

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Node(Protocol):
    """One condition."""

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops`` and the values of its question marks."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text column matches a regular expression; an unknown text never does.

    Attributes:
        column: column of ``ops``.
        pattern: in the syntax that Python and RE2 share.
        whole: it must match the whole text, not only a part.
        negated: it must not match.
    """

    column: str
    pattern: re.Pattern[str]
    whole: bool = True
    negated: bool = False

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        codes, texts = chunk.texts(self.column)
        match = self.pattern.fullmatch if self.whole else self.pattern.search
        # The last entry stands for code -1: a text that is not known.
        hits = np.array([*((match(t) is None) is self.negated for t in texts), False], dtype=bool)
        found: Mask = hits[codes]
        return found

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        function = "regexp_full_match" if self.whole else "regexp_matches"
        negation = "NOT " if self.negated else ""
        return f"coalesce({negation}{function}({self.column}, ?), false)", [self.pattern.pattern]


@dataclass(frozen=True, slots=True)
class Number:
    """A quantity compares with a number; one that was not measured never does.

    Attributes:
        quantity: a key of ``QUANTITIES``.
        comparison: a key of ``COMPARISONS``.
        value: the number.
    """

    quantity: str
    comparison: str
    value: float

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        values = QUANTITIES[self.quantity].values(chunk)
        with np.errstate(invalid="ignore"):
            found: Mask = COMPARISONS[self.comparison](values, self.value) & ~np.isnan(values)
        return found

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        expression = QUANTITIES[self.quantity].sql
        comparison = "=" if self.comparison == "==" else self.comparison
        return f"coalesce(({expression}) {comparison} ?, false)", [self.value]


@dataclass(frozen=True, slots=True)
class Flag:
    """One of some bits of the column ``flags`` is set."""

    bits: int

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        found: Mask = (chunk.integers("flags") & self.bits) != 0
        return found

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        return f"(flags & {int(self.bits)}) != 0", []


@dataclass(frozen=True, slots=True)
class OneOf:
    """The op id is one of some."""

    op_ids: frozenset[int]

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        found: Mask = np.isin(
            chunk.integers("op_id"), np.array(sorted(self.op_ids), dtype=np.int64)
        )
        return found

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        return "list_contains(?::BIGINT[], op_id)", [sorted(self.op_ids)]


@dataclass(frozen=True, slots=True)
class Reads:
    """The op reads a value."""

    value_id: int

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        return chunk.lists_hold("in_ids", self.value_id)

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        return "list_contains(in_ids, ?)", [self.value_id]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a condition."""

    part: Node

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        return ~self.part.mask(chunk)

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        text, values = self.part.sql()
        return f"NOT ({text})", values


@dataclass(frozen=True, slots=True)
class And:
    """All of some conditions."""

    parts: tuple[Node, ...]

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        found = self.parts[0].mask(chunk)
        for part in self.parts[1:]:
            # A part that reads one more column is only asked where it can matter.
            if not found.any():
                break
            found = found & part.mask(chunk)
        return found

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        return _joined(" AND ", self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """One or more of some conditions; none at all is false."""

    parts: tuple[Node, ...]

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        found = np.zeros(len(chunk), dtype=np.bool_)
        for part in self.parts:
            found |= part.mask(chunk)
        return found

    def sql(self) -> Sql:
        """Return it as a condition on the table ``ops``."""
        return _joined(" OR ", self.parts) if self.parts else ("false", [])


def _joined(word: str, parts: Sequence[Node]) -> Sql:
    texts, values = [], []
    for part in parts:
        text, of_part = part.sql()
        texts.append(f"({text})")
        values += of_part
    return word.join(texts), values


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that a condition may name.

    Attributes:
        sql: its expression over the columns of ``ops``.
        values: computes it for a chunk, NaN where unknown.
        meaning: one phrase for the help.
    """

    sql: str
    values: Callable[[Chunk], NDArray[np.float64]]
    meaning: str


def _column(name: str, meaning: str) -> Quantity:
    return Quantity(name, lambda chunk: chunk.numbers(name), meaning)


def _absmax(chunk: Chunk) -> NDArray[np.float64]:
    return np.maximum(np.abs(chunk.numbers("vmin")), np.abs(chunk.numbers("vmax")))


QUANTITIES: dict[str, Quantity] = {
    "nan": _column("nan_count", "NaN elements of the first output"),
    "inf": _column("inf_count", "+Inf and -Inf elements of the first output"),
    "neginf": _column("neginf_count", "-Inf elements of the first output"),
    "bad": Quantity(
        "nan_count + inf_count",
        lambda chunk: chunk.numbers("nan_count") + chunk.numbers("inf_count"),
        "NaN and Inf elements of the first output",
    ),
    "zero": _column("zero_count", "elements equal to 0"),
    "numel": _column("numel", "elements of the first output"),
    "min": _column("vmin", "smallest finite element"),
    "max": _column("vmax", "largest finite element"),
    "absmax": Quantity(
        "CASE WHEN vmin IS NULL OR vmax IS NULL THEN NULL ELSE greatest(abs(vmin), abs(vmax)) END",
        _absmax,
        "largest magnitude of a finite element",
    ),
    "mean": _column("mean", "mean of the finite elements"),
    "std": _column("std", "standard deviation of the finite elements"),
    "l2": _column("l2", "Euclidean norm of the finite elements"),
    "duration": _column("duration_ns", "duration (1ms, 20us, 300 = ns)"),
    "start": _column("start_ns", "start, ns since the trace began"),
    "step": _column("step", "training step"),
    "line": _column("line", "line of the source"),
    "id": _column("op_id", "op id"),
    "rank": _column("rank", "process of the run"),
    "tid": _column("tid", "operating-system thread id"),
    "parent": _column("parent_id", "id of the enclosing composite op"),
    "forward": _column("fwd_op_id", "id of the forward op of a backward op"),
}
"""Quantity -> how to get it."""


def writes(value_id: int) -> Node:
    """Return the condition that an op wrote a value."""
    return OneOf(frozenset({value_id >> SLOT_BITS if value_id >= 0 else -1}))


def step_bounds(node: Node) -> tuple[int | None, int | None]:
    """Return the first and last training step that a condition can hold in, ``None``: no bound."""
    first: int | None = None
    last: int | None = None
    for part in node.parts if isinstance(node, And) else (node,):
        low = high = None
        if isinstance(part, And):
            low, high = step_bounds(part)
        elif isinstance(part, Number) and part.quantity == "step" and isfinite(part.value):
            low = floor(part.value) if part.comparison in ("=", "==", ">", ">=") else None
            high = ceil(part.value) if part.comparison in ("=", "==", "<", "<=") else None
        first = low if first is None or (low is not None and low > first) else first
        last = high if last is None or (high is not None and high < last) else last
    return first, last
