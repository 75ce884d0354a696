"""Every analysis across ranks, once over a trace."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tracelens.analysis.ranks.clocks import Clock, align
from tracelens.analysis.ranks.waits import RankWait, Transfer, find_source, rank_waits, transfers
from tracelens.analysis.ranks.wrong import Divergence, FirstBad, divergence, first_bad
from tracelens.engines import queries

if TYPE_CHECKING:
    from tracelens.engines import Engine

PARTS = 3
"""Ranges or ops that are named to say where a late rank loses its time."""


@dataclass(frozen=True, slots=True)
class RankSteps:
    """One rank's steps.

    Attributes:
        total_ns: sum of their durations.
        last: number of the last one.
        later_ns: sum of the durations of all but the run's first step.
    """

    rank: int
    n: int
    total_ns: int | None
    median_ns: float | None
    max_ns: int | None
    last: int | None
    later_ns: int | None


@dataclass(frozen=True, slots=True)
class StepSkew:
    """The duration of one step on the fastest and the slowest rank."""

    step: int
    ranks: int
    min_ns: int
    max_ns: int
    slowest: int


@dataclass(frozen=True, slots=True)
class Excess:
    """What one rank spends more time in than the middle one.

    Attributes:
        what: ``"span"`` (a range that the program named), ``"op"`` or ``"sample"`` (the innermost
            Python frame, where the host was sampled).
        total_ns: its total on the rank.
        more_ns: how much more that is than the median rank's total.
    """

    what: str
    name: str
    total_ns: int
    more_ns: int


@dataclass(frozen=True, slots=True)
class RankReport:
    """What ``tracelens ranks`` tells.

    Attributes:
        ranks: ranks that left a shard.
        world_size: ranks that the run had.
        missing: those that left none.
        attempts: restarts of the run, 0 if it was never restarted.
        states: shard name to its state.
        source: where the collectives were found, ``None`` if there are none.
        skew: the steps whose duration differs most between ranks.
        mismatched: collectives that ranks of one group did not call alike.
        excess: where the rank that makes others wait most spends more than they do.
        findings: what a person should look at (``findings.judge``).
    """

    ranks: tuple[int, ...]
    world_size: int
    missing: tuple[int, ...]
    attempts: int
    states: dict[str, str]
    problems: tuple[str, ...]
    source: str | None
    clocks: tuple[Clock, ...]
    steps: tuple[RankSteps, ...]
    skew: tuple[StepSkew, ...]
    waits: tuple[RankWait, ...]
    transfers: tuple[Transfer, ...]
    mismatched: tuple[dict[str, Any], ...]
    excess: tuple[Excess, ...]
    nonfinite: tuple[FirstBad, ...]
    divergence: Divergence | None
    findings: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        plain = asdict(self)
        plain["divergence"] = self.divergence.as_json() if self.divergence else None
        return plain


def analyse(engine: Engine, *, top: int = 10) -> RankReport:
    """Analyse a trace of several ranks.

    Args:
        engine: an open trace (``tracelens.engines.open_engine``).
        top: rows of each list that can be long.
    """
    from tracelens.analysis.ranks.findings import judge

    reader = engine.reader
    health = reader.health()
    ranks = tuple(reader.ranks())
    world_size = max(_world(reader.manifest.world_size), len(ranks))
    known = set(ranks)
    missing = tuple(rank for rank in range(world_size) if rank not in known)
    source = find_source(engine)
    clocks = tuple(align(engine, source))
    waits = tuple(rank_waits(engine, source)) if source else ()
    skew = [StepSkew(*row) for row in engine.rows(queries.STEP_SKEW)]
    skew.sort(key=lambda step: (step.min_ns - step.max_ns, step.step))
    latest = max(waits, key=lambda wait: wait.caused_ns, default=None)
    report = RankReport(
        ranks=ranks,
        world_size=world_size,
        missing=missing,
        attempts=max((state.attempt for state in reader.shards()), default=0),
        states={shard.shard: shard.state for shard in health.shards},
        problems=(*health.lines(), *engine.problems),
        source=source,
        clocks=clocks,
        steps=tuple(RankSteps(*row) for row in engine.rows(queries.RANK_STEPS)),
        skew=tuple(skew[:top]),
        waits=waits,
        transfers=tuple(transfers(engine, source)[:top]) if source else (),
        mismatched=_mismatched(engine, source),
        excess=_excess(engine, latest.rank) if latest and latest.caused_ns > 0 else (),
        nonfinite=tuple(first_bad(engine, {clock.rank: clock for clock in clocks})),
        divergence=divergence(engine, top=top),
    )
    return judge(report)


def _world(told: object) -> int:
    """The world size is a number from a file: never count further than there can be ranks."""
    return min(told, 1 << 20) if isinstance(told, int) and told > 0 else 1


def _mismatched(engine: Engine, source: str | None) -> tuple[dict[str, Any], ...]:
    if source is None:
        return ()
    keys = ("group", "number", "ranks", "one", "other", "least_bytes", "most_bytes")
    rows = engine.rows(queries.mismatched(source))
    return tuple(dict(zip(keys, row, strict=True)) for row in rows)


def _excess(engine: Engine, rank: int) -> tuple[Excess, ...]:
    """Compare what a rank's time went into with the median of the others."""
    totals: dict[tuple[str, str], dict[int, int]] = {}
    everyone: set[int] = set()
    for of_rank, what, name, total_ns, _ in engine.rows(queries.RANK_PARTS):
        totals.setdefault((what, name), {})[of_rank] = int(total_ns)
        everyone.add(of_rank)
    others = everyone - {rank}
    found = []
    for (what, name), by_rank in totals.items():
        if rank in by_rank and others:
            middle = statistics.median(by_rank.get(other, 0) for other in others)
            found.append(Excess(what, name, by_rank[rank], round(by_rank[rank] - middle)))
    found.sort(key=lambda excess: (-excess.more_ns, excess.name))
    return tuple(excess for excess in found[:PARTS] if excess.more_ns > 0)
