"""Where a cursor stops: breakpoints at ops that match, watches where a condition turns true."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracelens import filters
from tracelens.errors import ConfigError
from tracelens.events import Op
from tracelens.filters import Filter
from tracelens.predicates import Mask
from tracelens.storage.chunks import Chunk, Predicate

_SITE = ("name", "module", "phase", "file")


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """One place to stop at.

    Attributes:
        number: from 1, never given twice.
        filter: what an op must satisfy.
        watch: stop only where it turns true: the same operation (name, module, phase, line) did
            not satisfy it the last time.
        once: it is removed when it is reached.
        enabled: whether it stops anything.
    """

    number: int
    filter: Filter
    watch: bool = False
    once: bool = False
    enabled: bool = True

    def __str__(self) -> str:
        kind = "watch" if self.watch else "break"
        notes = " once" * self.once + " off" * (not self.enabled)
        return f"{self.number}  {kind}  {self.filter}{notes}"


class Breakpoints:
    """The breakpoints and watches of one cursor."""

    def __init__(self, findings: Callable[[], Iterable[int]] = tuple) -> None:
        """Begin without any.

        Args:
            findings: returns the op ids that ``@finding`` stands for.
        """
        self._findings = findings
        self._all: dict[int, Breakpoint] = {}
        self._last = 0

    def __iter__(self) -> Iterator[Breakpoint]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def add(self, spec: str, *, watch: bool = False, once: bool = False) -> Breakpoint:
        """Add a breakpoint.

        Args:
            spec: a filter expression.
            watch: stop where it turns true only.
            once: remove it when it is reached.

        Raises:
            FilterError: the expression cannot be understood.
        """
        compiled = filters.compile(spec, self._findings() if "@finding" in spec else ())
        self._last += 1
        added = Breakpoint(self._last, compiled, watch=watch, once=once)
        self._all[added.number] = added
        return added

    def remove(self, which: int | str | None = None) -> list[Breakpoint]:
        """Remove one by its number, those of one expression, or all; return them.

        Raises:
            ConfigError: there is no such breakpoint.
        """
        gone = [
            each
            for each in self
            if which is None or which == each.number or which == each.filter.text
        ]
        if not gone and which is not None:
            raise ConfigError(f"there is no breakpoint {which}; `breakpoints` lists them")
        for each in gone:
            del self._all[each.number]
        return gone

    def enable(self, number: int, on: bool = True) -> Breakpoint:
        """Turn one on or off without forgetting it.

        Raises:
            ConfigError: there is no such breakpoint.
        """
        if number not in self._all:
            raise ConfigError(f"there is no breakpoint {number}; `breakpoints` lists them")
        self._all[number] = replace(self._all[number], enabled=on)
        return self._all[number]

    def predicate(self) -> Predicate | None:
        """Return the condition of a candidate to stop at; ``None`` if nothing can stop.

        A candidate of a watch has to be confirmed: what its operation did in an earlier chunk is
        not known here.
        """
        parts = [Turned(each.filter) if each.watch else each.filter for each in self._on()]
        return AnyOf(tuple(parts)) if parts else None

    def at(self, op: Op) -> list[Breakpoint]:
        """Return the enabled ones whose expression an op satisfies, watches included."""
        return [each for each in self._on() if each.filter.matches(op)]

    def _on(self) -> list[Breakpoint]:
        return [each for each in self if each.enabled]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One or more of some conditions."""

    parts: tuple[Predicate, ...]

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        found = self.parts[0].mask(chunk)
        for part in self.parts[1:]:
            found = found | part.mask(chunk)
        return found


@dataclass(frozen=True, slots=True)
class Turned:
    """A condition is true of an op, and was not the last time the same operation ran.

    What ran before the chunk is not seen: the first of an operation counts as turned.
    """

    filter: Filter

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        true = self.filter.mask(chunk)
        if not true.any():
            return true
        ids = chunk.integers("op_id")
        sites = _sites(chunk)
        order = np.lexsort((ids, sites))
        ordered, ordered_sites = true[order], sites[order]
        turned = ordered.copy()
        same = ordered_sites[1:] == ordered_sites[:-1]
        turned[1:] &= ~(same & ordered[:-1])
        found = np.zeros(len(chunk), dtype=np.bool_)
        found[order] = turned
        return found


def _sites(chunk: Chunk) -> NDArray[np.int64]:
    """Return a number for each op that is the same for the same operation, shape (len,)."""
    sites = chunk.integers("line") + 1
    for column in _SITE:
        codes, texts = chunk.texts(column)
        _, sites = np.unique(sites, return_inverse=True)
        sites = sites.astype(np.int64) * (len(texts) + 1) + codes + 1
    return sites


@dataclass(frozen=True, slots=True)
class SameSite:
    """The op is another run of the same operation: name, module, phase and source line."""

    op: Op

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        op = self.op
        wanted = {
            "name": op.name,
            "module": op.module or None,
            "phase": op.phase.label,
            "file": op.source.file if op.source else None,
        }
        found: Mask = chunk.integers("line") == (op.source.line if op.source else -1)
        for column, text in wanted.items():
            codes, texts = chunk.texts(column)
            # A text occurs once among the distinct ones, or not at all in this chunk.
            code = -1 if text is None else texts.index(text) if text in texts else -2
            found = found & (codes == code)
        return found
