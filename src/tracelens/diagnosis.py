"""The verdict on a whole trace: every rank's, and of those the one to show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tracelens.analysis.verdict import verdict
from tracelens.events import Op

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

Json = dict[str, Any]

_MISSED = ("hook_failed", "drop", "unseen")
_MAX_MISSED = 8

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
        "unseen": unseen(reader.notes()),
    }
    verdicts = [
        verdict(RankOps(reader, rank), reader.events(rank=rank), info) for rank in reader.ranks()
    ]
    if not verdicts:
        return verdict(RankOps(reader, 0), [], info)
    shown = min(verdicts, key=_order)
    rest = [finding for each in verdicts if each is not shown for finding in each["findings"]]
    return {**shown, "findings": [*shown["findings"], *rest]}


def unseen(notes: Iterable[Json]) -> list[str]:
    """Return what notes say was not observed: hooks that failed, records that were dropped.

    Args:
        notes: ``note`` events.

    Examples:
        >>> unseen([{"kind": "drop", "severity": "warning", "message": "7 records were dropped"}])
        ['7 records were dropped']
    """
    missed = (
        str(note.get("message", ""))
        for note in notes
        if note.get("kind") in _MISSED and note.get("severity") in ("warning", "error")
    )
    return list(dict.fromkeys(message for message in missed if message))[:_MAX_MISSED]


def _order(told: Json) -> tuple[int, int, int]:
    first = told.get("first_cause") or {}
    return (
        _WORST_FIRST.index(told["verdict"]),
        int(first.get("step") or 0),
        int(first.get("rank") or 0),
    )
