"""Who waits for whom at collectives, and how fast they move data.

A synchronising collective ends on all ranks at nearly one instant. The rank whose call was
shortest arrived last and waited for nobody: its call is the transfer, what the others' calls took
longer is their wait. Durations alone are compared, never two clocks. Where kernels of NCCL are the
source this is exact to the ring's own stages; on the host (gloo) to the scheduling of its threads.

Bus bandwidth is that of NCCL's tests: size / time, times 2 (n - 1) / n for an allreduce and
(n - 1) / n for allgather, reduce_scatter and alltoall
(https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tracelens.engines import queries

if TYPE_CHECKING:
    from tracelens.engines import Engine


@dataclass(frozen=True, slots=True)
class RankWait:
    """One rank at the collectives that it shared with others.

    Attributes:
        calls: synchronising collectives of more than one rank.
        inside_ns: time in them.
        waited_ns: part of it that was waiting for a later rank.
        last: collectives at which it was the last to arrive.
        caused_ns: what would have been saved had it come with the last but one each time.
        own_ns: median over its steps of their duration without the waits.
    """

    rank: int
    calls: int
    inside_ns: int
    waited_ns: int
    last: int
    caused_ns: int
    own_ns: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Transfer:
    """Collectives of one kind, group and size.

    Attributes:
        median_ns: duration of a call that waited for nobody.
        size_bytes: what one rank gives.
        algorithm_gbs: size (of the whole, for an allgather) / duration in GB/s; ``None`` where the
            size is not known.
        bus_gbs: the same, as the busiest link saw it.
    """

    name: str
    group: str
    ranks: int
    size_bytes: int | None
    calls: int
    median_ns: float
    total_ns: int
    algorithm_gbs: float | None
    bus_gbs: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return asdict(self)


def find_source(engine: Engine, sources: Sequence[str] = queries.COLLECTIVE_SOURCES) -> str | None:
    """Return where a trace's collectives are, ``None`` if it holds none.

    Args:
        engine: an open trace.
        sources: tables to look in, the best first.
    """
    for source in sources:
        if engine.rows(queries.collective_counts(source))[0][0]:
            return source
    return None


def rank_waits(engine: Engine, source: str) -> list[RankWait]:
    """Return every rank's waits, by rank."""
    own: dict[int, float] = dict(engine.rows(queries.rank_own(source)))
    return [
        RankWait(rank, calls, inside, waited, last, caused, own.get(rank))
        for rank, calls, inside, waited, last, caused in engine.rows(queries.rank_waits(source))
    ]


def transfers(engine: Engine, source: str) -> list[Transfer]:
    """Return how fast each kind and size of collective was, the longest total first."""
    found = []
    for name, group, ranks, size, calls, median, total in engine.rows(queries.bandwidth(source)):
        # What each rank gives to an allgather is an n-th of what is gathered.
        moved = size * ranks if size and name == "allgather" else size
        speed = moved / median if moved and median else None
        bus = speed * bus_factor(name, ranks) if speed is not None else None
        found.append(Transfer(name, group, ranks, size, calls, median, total, speed, bus))
    return found


def bus_factor(name: str, ranks: int) -> float:
    """Return what turns algorithm bandwidth into bus bandwidth.

    Examples:
        >>> bus_factor("allreduce", 4)
        1.5
    """
    if ranks < 2:
        return 1.0
    if name == "allreduce":
        return 2 * (ranks - 1) / ranks
    if name in ("allgather", "reducescatter", "alltoall"):
        return (ranks - 1) / ranks
    return 1.0
