"""What is wrong with a trace, told and never raised: a damaged trace still opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BENIGN = frozenset({"leftover_tmp", "unlisted"})
"""Kinds that lost no record: what an interrupted seal leaves is still in the ring."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: ``torn_shard``, ``missing_shard``, ``dead_writer``, ``disk_full``, ``failed``,
            ``dropped``, ``holes``, ``damaged_lines``, ``unreadable_ring``, ``unknown_strings``,
            ``quarantined``, ``damaged_tensors``, ``truncated``, ``unlisted``, ``unsealed`` or
            ``leftover_tmp``.
        shard: the shard concerned; empty for the whole run.
        message: one line.
        count: how many records, files or lines are concerned.
    """

    kind: str
    shard: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        where = f"{self.shard}: " if self.shard else ""
        return f"{where}{self.message} [{self.kind}]"


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """One shard in a line of the health table.

    Attributes:
        state: what the shard says of itself (``live``, ``closed`` …).
        alive: its process still runs.
        segments: Parquet files.
        sealed_records: ring records in segments.
        tail_records: ring records readable but not sealed.
        holes: positions that a killed thread reserved and never wrote.
        dropped: records lost because the ring or the disk was full.
    """

    shard: str
    rank: int
    state: str
    alive: bool
    segments: int
    sealed_records: int
    tail_records: int
    holes: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a whole trace."""

    shards: tuple[ShardHealth, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Nothing was lost and every file can be read."""
        return all(problem.kind in BENIGN for problem in self.problems)

    def of_kind(self, kind: str) -> Sequence[Problem]:
        """Return the problems of one kind."""
        return [problem for problem in self.problems if problem.kind == kind]

    def lines(self) -> list[str]:
        """Return the problems as one-line texts, for the terminal."""
        return [str(problem) for problem in self.problems]
