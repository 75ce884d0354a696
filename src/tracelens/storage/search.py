"""Searching the ops of one shard, forwards or backwards, a chunk at a time.

A search reads only the columns that its condition names and stops at the first chunk that can
settle it, so the next match costs milliseconds however long the trace is. Between chunks it tells
its progress and can be cancelled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracelens.storage.chunks import Chunk, ChunkRef, Predicate
from tracelens.storage.parquet_files import DamagedSegmentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from tracelens.lazy import np

_CACHED_CHUNKS = 4
_END = 1 << 62

Progress = Callable[[int, int], None]
"""Called with ops looked at so far and ops there are to look at."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        op_ids: ids of matching ops, nearest first.
        complete: the search was not cancelled; there is no nearer match.
        looked_at: ops whose columns were looked at.
    """

    op_ids: tuple[int, ...]
    complete: bool
    looked_at: int


class Search:
    """Searches one shard; keeps the columns of the last chunks it read.

    Args:
        chunks: lists the shard's chunks.
    """

    def __init__(self, chunks: Callable[[], Sequence[ChunkRef]]) -> None:
        self._chunks = chunks
        self._cache: OrderedDict[object, Chunk] = OrderedDict()

    def find(
        self,
        predicate: Predicate,
        *,
        after: int | None = None,
        before: int | None = None,
        until: int | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
        limit: int = 1,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Found:
        """Find the nearest ops that satisfy a condition.

        Args:
            predicate: the condition; if it has an attribute ``steps`` (first and last training step
                that it can hold in, ``None`` for no bound), files of other steps are left out.
            after: search upwards from this op id (it is left out); from the start if neither
                ``after`` nor ``before`` is given.
            before: search downwards from this op id (it is left out).
            until: the last op id to look at, in the direction of the search.
            first_step: leave out files that hold only earlier training steps.
            last_step: leave out files that hold only later ones.
            limit: ids to return at most.
            progress: told between chunks.
            cancelled: asked between chunks; true ends the search.
        """
        steps = getattr(predicate, "steps", None) or (None, None)
        first_step = steps[0] if first_step is None else first_step
        last_step = steps[1] if last_step is None else last_step
        back = before is not None
        if before is not None:
            low, high = (-1 if until is None else until - 1), before
        else:
            low, high = (-1 if after is None else after), (_END if until is None else until + 1)
        refs = [ref for ref in self._chunks() if ref.op_hi > low and ref.op_lo < high]
        if first_step is not None:
            refs = [ref for ref in refs if ref.step_hi >= first_step]
        if last_step is not None:
            refs = [ref for ref in refs if ref.step_lo <= last_step]
        refs.sort(key=lambda ref: -ref.op_hi if back else ref.op_lo)
        total = sum(ref.rows for ref in refs)
        found: list[int] = []
        done = 0
        for ref in refs:
            # What comes later cannot be nearer than what is found.
            if len(found) >= limit and (ref.op_hi < found[-1] if back else ref.op_lo > found[-1]):
                break
            if cancelled is not None and cancelled():
                return Found(tuple(found), False, done)
            if progress is not None:
                progress(done, total)
            chunk = self._chunk(ref)
            if chunk is not None:
                ids = _matches(ref, chunk, predicate, low, high)
                nearest = ids[-limit:][::-1] if back else ids[:limit]
                if len(nearest):
                    found = sorted({*found, *nearest.tolist()}, reverse=back)[:limit]
            done += ref.rows
        if progress is not None:
            progress(total, total)
        return Found(tuple(found), True, done)

    def _chunk(self, ref: ChunkRef) -> Chunk | None:
        known = self._cache.get(ref.key)
        if known is None:
            known = ref.load()
            if known is None:
                return None
            self._cache[ref.key] = known
            if len(self._cache) > _CACHED_CHUNKS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(ref.key)
        return known


def _matches(
    ref: ChunkRef, chunk: Chunk, predicate: Predicate, low: int, high: int
) -> NDArray[np.int64]:
    """Return the ids strictly between two bounds that match, ascending."""
    try:
        mask = predicate.mask(chunk)
        if not mask.any():
            return np.empty(0, dtype=np.int64)
        ids = chunk.integers("op_id")[mask]
    except DamagedSegmentError as error:
        ref.damaged(str(error))
        return np.empty(0, dtype=np.int64)
    return np.sort(ids[(ids > low) & (ids < high)])
