"""The verdict on a whole trace: every rank's, and of those the one to show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tracelens.analysis.verdict import verdict
from tracelens.events import Op

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

Json = dict[str, Any]

_WORST_FIRST = ("non-finite", "masked", "clean")


class RankOps:
    """One rank's ops of a trace, as the analysis wants them (an ``OpSource``).

    Args:
        reader: an open trace.
        rank: whose ops; op ids are unique only within a rank.
    """

    def __init__(self, reader: TraceReader, rank: int) -> None:
        self._reader = reader
        self.rank = rank

    def op(self, op_id: int) -> Op | None:
        """Return the op, or ``None`` if it was not recorded."""
        return self._reader.op(op_id, self.rank)

    def hits(self, step: int | None = None) -> Iterable[int]:
        """Return ids of ops whose output was non-finite, in order."""
        return self._reader.hits(step, self.rank)


def diagnose(reader: TraceReader) -> Json:
    """Return what ``tracelens why --json`` prints.

    With several ranks the worst verdict counts; among equals the earliest step, then the lowest
    rank. ``findings`` are those of all ranks, the shown one first.
    """
    health = reader.health()
    info = {
        "path": str(reader.path),
        "version": reader.manifest.version,
        "shards": len(health.shards),
        "problems": health.lines(),
    }
    verdicts = [
        verdict(RankOps(reader, rank), reader.events(rank=rank), info) for rank in reader.ranks()
    ]
    if not verdicts:
        return verdict(RankOps(reader, 0), [], info)
    shown = min(verdicts, key=_order)
    rest = [finding for each in verdicts if each is not shown for finding in each["findings"]]
    return {**shown, "findings": [*shown["findings"], *rest]}


def _order(told: Json) -> tuple[int, int, int]:
    first = told.get("first_cause") or {}
    return (
        _WORST_FIRST.index(told["verdict"]),
        int(first.get("step") or 0),
        int(first.get("rank") or 0),
    )
