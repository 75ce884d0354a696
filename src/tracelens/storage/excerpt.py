"""A trace of its own from a stretch of a ring that another shard is still being written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tracelens.errors import SessionError
from tracelens.storage.manifest import MANIFEST, new_manifest, write_manifest
from tracelens.storage.ring import Records
from tracelens.storage.rundir import CREATED_BY
from tracelens.storage.writer import ShardWriter

_SMALL_RING_BYTES = 1 << 14


def write_excerpt(
    source: ShardWriter,
    path: Path,
    records: Records,
    events: Iterable[Mapping[str, Any]],
    *,
    first_step: int = 0,
    framework: str = "",
) -> None:
    """Write a trace of some records and events of a live shard.

    A trace that lies there already is replaced.

    Args:
        source: the shard.
        path: where the trace goes.
        records: records of its ring.
        events: events as they are appended to a shard.
        first_step: the step that becomes step 0, in records and events.
        framework: the frameworks recorded.

    Raises:
        SessionError: the path holds something that is no trace.
        OSError: it cannot be written.
    """
    if path.exists():
        if not (path / MANIFEST).exists():
            raise SessionError(f"{path} is no trace; remove it or choose another directory")
        shutil.rmtree(path)
    path.mkdir(parents=True)
    write_manifest(path, new_manifest(source.manifest.epoch_unix_ns, 1, CREATED_BY))
    writer = ShardWriter(
        path, framework=framework, ring_bytes=_SMALL_RING_BYTES, world_size=1, sealed_by="close"
    )
    try:
        copied = records.copy()
        copied["step"] = np.maximum(copied["step"] - first_step, 0)
        for field, kinds in (("site_id", ("site",)), ("layout_id", ("layout", "tensor"))):
            copied[field] = _moved(source, writer, copied[field], kinds)
        writer.adopt(copied)
        for event in events:
            fields = dict(with_steps_from(first_step, event))
            writer.event(str(fields.pop("t")), **fields)
    finally:
        writer.close()


def with_steps_from(first_step: int, told: Any) -> Any:
    """Return JSON with every ``step`` in it counted from a step, 0 at least.

    >>> with_steps_from(5, {"step": 7, "sink": {"step": 5, "name": "step"}})
    {'step': 2, 'sink': {'step': 0, 'name': 'step'}}
    """
    if isinstance(told, Mapping):
        return {
            key: max(0, value - first_step)
            if key == "step" and isinstance(value, int)
            else with_steps_from(first_step, value)
            for key, value in told.items()
        }
    if isinstance(told, list | tuple):
        return [with_steps_from(first_step, each) for each in told]
    return told


def _moved(
    source: ShardWriter, target: ShardWriter, ids: np.ndarray[Any, Any], kinds: tuple[str, ...]
) -> np.ndarray[Any, Any]:
    """Return the ids that interned values of one shard have in another."""
    known, places = np.unique(ids, return_inverse=True)
    moved = []
    for number in known:
        entry = source.interned(int(number))
        wanted = entry is not None and entry[0] in kinds
        moved.append(target.intern(*entry) if entry is not None and wanted else 0)
    return np.asarray(moved, dtype=ids.dtype)[places]
