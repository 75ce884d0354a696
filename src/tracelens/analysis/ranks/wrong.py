"""Which rank went wrong first: its numbers stopped being finite, or its parameters drifted off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tracelens.engines import queries

if TYPE_CHECKING:
    from tracelens.analysis.ranks.clocks import Clock
    from tracelens.engines import Engine


@dataclass(frozen=True, slots=True)
class FirstBad:
    """Where one rank first went non-finite.

    Attributes:
        step: its training step; ``None`` if it was outside of any.
        op: the op, as recorded or as its finding's first cause names it.
        source: ``"file:line"`` of the user's line, empty where not known.
        t_ns: when, on the aligned clock; ``None`` where only a finding tells.
        error: a finding of severity error tells it; otherwise an op's output alone, which a program
            may well have meant.
        error_ns: by how much the clock may be off.
    """

    rank: int
    step: int | None
    op: str
    source: str
    t_ns: int | None
    error: bool
    error_ns: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return asdict(self)


def first_bad(engine: Engine, clocks: Mapping[int, Clock]) -> list[FirstBad]:
    """Return each rank's first non-finite value: by step, then by the aligned clock.

    What an error finding blames comes before what merely was Inf or NaN, if any rank has such a
    finding: masks are full of Infs that nobody minds.
    """
    offsets = {state.rank: state.clock_offset_ns for state in engine.reader.shards()}
    seen: dict[int, FirstBad] = {}
    for rank, step, _, _, name, _, _, file, line, t_ns, _ in engine.rows(queries.FIRST_BAD):
        clock = clocks.get(rank)
        moved = (clock.offset_ns - offsets.get(rank, 0)) if clock else 0
        place = f"{file}:{line}" if file else ""
        error_ns = clock.error_ns if clock else None
        seen.setdefault(rank, FirstBad(rank, step, name, place, t_ns + moved, False, error_ns))
    errors: dict[int, FirstBad] = {}
    for rank, step, _, _, payload in engine.rows(queries.ERRORS):
        if rank not in errors:
            errors[rank] = _blamed(rank, step, payload, seen.get(rank))
    return sorted((errors or seen).values(), key=_order)


def _blamed(rank: int, step: int | None, payload: str, seen: FirstBad | None) -> FirstBad:
    """Return what a finding blames; the op's own record tells when it ran, if it is that op."""
    cause = _object(_parsed(payload).get("first_cause"))
    source = _object(cause.get("source"))
    place = f"{source['file']}:{source.get('line')}" if source.get("file") else ""
    born = cause.get("step")
    step = born if isinstance(born, int) and born >= 0 else step
    same = seen is not None and seen.step == step
    return FirstBad(
        rank,
        step,
        str(cause.get("op") or ""),
        place,
        seen.t_ns if seen is not None and same else None,
        True,
        seen.error_ns if seen is not None else None,
    )


def _order(bad: FirstBad) -> tuple[int, int, int]:
    late = 1 << 62
    return (
        bad.step if bad.step is not None else late,
        bad.t_ns if bad.t_ns is not None else late,
        bad.rank,
    )


def _parsed(text: Any) -> dict[str, Any]:
    """A payload is a line of a file that anyone may have written."""
    try:
        return _object(json.loads(text or ""))
    except (TypeError, ValueError, RecursionError):
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Diverged:
    """A rank that does not hold what most ranks hold.

    Attributes:
        kind: ``"parameter"`` or ``"gradient"``.
        first: first step at which its fingerprint was another.
        steps: steps at which it was.
        names: parameters concerned.
    """

    rank: int
    kind: str
    first: int
    steps: int
    names: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """What the fingerprints of parameters tell (``tl.watch(model, fingerprint_every=N)``).

    Attributes:
        steps: steps at which fingerprints were taken.
        ranks: ranks that took them.
        names: parameters looked at.
        first: the earliest differences ``(step, kind, name, versions, least l2, greatest l2)``.
        by_rank: the ranks that differ.
    """

    steps: int
    ranks: int
    names: int
    first: tuple[tuple[Any, ...], ...]
    by_rank: tuple[Diverged, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        keys = ("step", "kind", "name", "versions", "least_l2", "greatest_l2")
        return {**asdict(self), "first": [dict(zip(keys, row, strict=True)) for row in self.first]}


def divergence(engine: Engine, *, top: int = 10) -> Divergence | None:
    """Return where parameters differ between ranks, ``None`` if no fingerprints were taken."""
    steps, ranks, _, _, names = engine.rows(queries.FINGERPRINTED)[0]
    if not steps:
        return None
    rows = engine.rows(queries.DIVERGED)
    first = tuple((s, k, n, v, low, high) for s, k, n, _, v, low, high in rows[:top])
    by_rank = tuple(Diverged(*row) for row in engine.rows(queries.DIVERGED_RANKS)) if rows else ()
    return Divergence(steps, ranks, names, first, by_rank)
