"""One Parquet file of a trace as a reader knows it: where it is and what can be in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One Parquet file of one table, as its shard's manifest describes it.

    ``op_lo`` … ``step_hi`` are the smallest and largest op id and step in it, ``None`` if the
    manifest does not tell; then the file is always looked at.
    """

    table: str
    shard: str
    path: Path
    rows: int
    size_bytes: int
    op_lo: int | None = None
    op_hi: int | None = None
    step_lo: int | None = None
    step_hi: int | None = None
    crc32: int | None = None

    def may_hold(
        self,
        *,
        op_lo: int | None = None,
        op_hi: int | None = None,
        step_lo: int | None = None,
        step_hi: int | None = None,
    ) -> bool:
        """Whether rows with these op ids and steps (inclusive bounds) can be in the file."""
        return (
            _overlap(self.op_lo, self.op_hi, op_lo, op_hi)
            and _overlap(self.step_lo, self.step_hi, step_lo, step_hi)
        )  # fmt: skip


def _overlap(low: int | None, high: int | None, from_: int | None, to: int | None) -> bool:
    return not (
        (to is not None and low is not None and low > to)
        or (from_ is not None and high is not None and high < from_)
    )
