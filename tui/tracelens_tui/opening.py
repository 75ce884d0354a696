"""What is read before the first line is drawn; imports nothing that draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracelens_tui.rows import PAGE_ROWS

if TYPE_CHECKING:
    from tracelens.events import Op
    from tracelens.storage.reader import TraceReader


@dataclass(frozen=True, slots=True)
class Opening:
    """What is read before the first line is drawn.

    Attributes:
        rank: the rank shown.
        ranks: all ranks.
        total: ops of that rank.
        position: where the cursor starts.
        first: ops of the page that holds it.
        state: ``live``, ``closed``, ``killed`` … or ``empty``.
        last_id: id of the last op; -1 if there is none.
    """

    rank: int
    ranks: tuple[int, ...]
    total: int
    position: int
    first: tuple[Op, ...]
    state: str
    last_id: int = -1


def open_at(reader: TraceReader, at: int | None, rank: int | None) -> Opening:
    """Read what the first lines need, and nothing else."""
    ranks = tuple(reader.ranks())
    rank = rank if rank is not None else ranks[0] if ranks else 0
    total = reader.count_ops(rank)
    position = 0
    if at is not None and total:
        position = min(reader.position(at, rank), total - 1)
    start = position // PAGE_ROWS * PAGE_ROWS
    first = reader.ops_at(start, min(start + PAGE_ROWS, total), rank=rank)
    state = state_of(reader)
    last_id = -1
    if state == "live" and total:
        last_id = reader.ops_at(total - 1, total, rank=rank)[0].op_id
    return Opening(rank, ranks, total, position, tuple(first), state, last_id)


def state_of(reader: TraceReader) -> str:
    """Return the state of a trace in one word."""
    shards = reader.health().shards
    for state in ("live", "killed", "failed", "disk_full"):
        if any(shard.state == state for shard in shards):
            return state
    return "closed" if shards else "empty"
