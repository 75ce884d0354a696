"""What the analysis needs to know of a recording: ops by id, and which of them were hit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from tracelens.events import SLOT_BITS, Op


@runtime_checkable
class OpSource(Protocol):
    """Anything that can look up recorded ops: the live ring, a recovered ring, a trace."""

    def op(self, op_id: int) -> Op | None:
        """Return the op, or ``None`` if it is no longer (or never was) recorded."""

    def hits(self, step: int | None = None) -> Iterable[int]:
        """Return the ids of ops with a non-finite output, in order; of all steps if ``None``."""


def producer_id(value_id: int) -> int:
    """Return the id of the op that wrote a value, -1 if no recorded op did.

    >>> producer_id(7 * 16 + 2), producer_id(-1)
    (7, -1)
    """
    return value_id >> SLOT_BITS if value_id >= 0 else -1
