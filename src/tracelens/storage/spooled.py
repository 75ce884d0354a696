"""Turns the spools that a training process wrote into segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracelens.errors import TraceError
from tracelens.storage.bulk import SEGMENT_ROWS, arrow_table
from tracelens.storage.manifest import Segment, ShardState
from tracelens.storage.segments import SegmentStore
from tracelens.storage.spool import read_spool, spools

_IDS = {"ops": "op_id", "kernels": "kern_id", "spans": "span_id"}
DAMAGED_SUFFIX = ".damaged"


def seal_spools(
    run_dir: Path, state: ShardState, store: SegmentStore, save: Callable[[], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Turn every spool of a shard into segments and delete it.

    Args:
        run_dir: the trace.
        state: the shard; its segments and ``spools_sealed`` are brought up to date.
        store: the shard's segments.
        save: writes the state; called before a spool is deleted, so that none is lost.

    Returns:
        Notes that tell of damaged spools, and what these were renamed to.

    Raises:
        OSError: the disk is full; the spools stay.
    """
    notes, set_aside = [], []
    for number, path in spools(run_dir, state.shard):
        if number >= state.spools_sealed:
            segments, note = _seal_spool(path, state.rank, store)
            state.segments.extend(segments)
            state.spools_sealed = number + 1
            if note is not None:
                notes.append(note)
                set_aside.append(f"{path.parent.name}/{path.name}")
            save()
        path.unlink(missing_ok=True)
    return notes, set_aside


def _seal_spool(
    path: Path, rank: int, store: SegmentStore
) -> tuple[list[Segment], dict[str, Any] | None]:
    """Write a spool's tables as segments.

    Args:
        path: the spool; a damaged one is renamed to ``*.damaged``.
        rank: the shard's rank.
        store: the shard's segments.

    Returns:
        The segments, and a note that tells of damage, ``None`` if there was none.

    Raises:
        OSError: the disk is full.
    """
    try:
        tables = {
            name: arrow_table(name, columns, rank) for name, columns in read_spool(path).items()
        }
    except (TraceError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        path.rename(path.with_name(path.name + DAMAGED_SUFFIX))
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        told = f"profile rows are lost: {path.name} is damaged and was set aside ({reason})"
        note = {"t": "note", "kind": "profile", "severity": "error", "message": told}
        return [], note
    segments = []
    for name, table in tables.items():
        for at in range(0, table.num_rows, SEGMENT_ROWS):
            part = table.slice(at, SEGMENT_ROWS)
            ids = part[_IDS[name]] if name in _IDS else None
            low = ids[0].as_py() if ids is not None else at
            high = ids[-1].as_py() if ids is not None else at + part.num_rows - 1
            segments.append(store.write(name, part, low, high))
    return segments, None
