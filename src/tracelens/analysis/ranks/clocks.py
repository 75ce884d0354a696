"""How far each rank's clock is from the first rank's, from the collectives that both took part in.

No rank leaves a synchronising collective before every rank has entered it. So of every call, what
has to be added to a rank's times is at least ``entered(first) - left(rank)`` and at most
``left(first) - entered(rank)``: as in NTP, the narrowest of these bounds over all calls is never
wrong (while the clocks do not drift apart by more than it). Inside it, the median difference of the
moments at which both left is taken. All ranks leave within the transfer that follows the last
arrival, so the estimate is off by about the shortest transfer, and by how much the differences
scatter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tracelens.engines import queries

if TYPE_CHECKING:
    from tracelens.engines import Engine
    from tracelens.storage.manifest import ShardState

MIN_CALLS = 8
"""Fewer calls bound the offset and do not tell of a drift."""


@dataclass(frozen=True, slots=True)
class Clock:
    """One shard's clock against the first rank's.

    Attributes:
        offset_ns: add it to the shard's times.
        error_ns: what the offset is off by, typically; ``None`` where nothing was compared.
        low_ns: the offset is not below this, whatever the network did.
        high_ns: nor above this.
        drift_ppb: billionths by which the clocks drift apart, where that is more than the scatter.
        calls: collectives compared.
        source: ``"collectives"`` (estimated), ``"host"`` (the same machine and so the same clock)
            or ``"recorded"`` (what the trace says, nothing could be compared).
    """

    shard: str
    rank: int
    offset_ns: int
    error_ns: int | None
    low_ns: int | None
    high_ns: int | None
    drift_ppb: int | None
    calls: int
    source: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return asdict(self)


def align(engine: Engine, source: str | None) -> list[Clock]:
    """Estimate the clock of every shard, by rank and attempt.

    Args:
        engine: an open trace.
        source: where its collectives are (``waits.find_source``), ``None`` if it has none.
    """
    states = engine.reader.shards()
    rows = engine.rows(queries.clocks(source)) if source and len(states) > 1 else []
    compared = {str(row[0]): row for row in rows}
    hosts = {state.attempt: state.host for state in reversed(states)}
    return [_clock(state, compared.get(state.shard), hosts.get(state.attempt)) for state in states]


def _clock(state: ShardState, row: Any, first_host: str | None) -> Clock:
    if row is None:
        same = first_host == state.host and not state.clock_offset_ns
        told = "host" if same else "recorded"
        return Clock(
            state.shard, state.rank, state.clock_offset_ns, None, None, None, None, 0, told
        )
    (_, _, calls, low, high, middle, lower, upper, begin, end, quickest, since, until) = row
    error = round(quickest + (upper - lower) / 2)
    offset = round(middle)
    if low <= high:  # a drift can make the bounds cross
        offset = min(max(offset, low), high)
    source = "collectives"
    if first_host == state.host and low <= 0 <= high:
        offset, error, source = 0, 0, "host"
    drift = None
    # The middles of the first and the last quarter lie three quarters of the time apart.
    apart_ns = (until - since) * 3 / 4
    if source == "collectives" and calls >= MIN_CALLS and apart_ns > 0 and abs(end - begin) > error:
        drift = round((end - begin) / apart_ns * 1e9)
    return Clock(state.shard, state.rank, offset, error, low, high, drift, calls, source)
