"""Memory and counters of an export of Nsight Systems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tracelens.convert._columns import Rows, step_of
from tracelens.convert.nsys_database import Database, Row
from tracelens.storage.bulk import BulkShard

USAGE_COLUMNS = ("start", "globalPid", "deviceId", "address", "bytes", "memoryOperationType")
_FREED = 1
_GPU_OF_TYPE = 0xFF
"""The lowest byte of a metric's type id is the number of its GPU."""


def write_memory(
    usage: Iterable[Row], offset_ns: int, shard: BulkShard, steps: Sequence[Mapping[str, int]]
) -> int:
    """Write allocations and frees; return how many rows could not be read.

    Args:
        usage: rows of ``USAGE_COLUMNS``, in order of time.
        offset_ns: what to add to their times.
        shard: where they go.
        steps: of the trace.
    """
    rows = Rows(("t_ns", "size_bytes", "address", "allocated_bytes"), ("device",))
    held: dict[Any, int] = {}
    damaged = 0
    for start, _, device, address, size, kind in usage:
        if not isinstance(start, int) or not isinstance(size, int):
            damaged += 1
            continue
        change = -size if kind == _FREED else size
        held[device] = held.get(device, 0) + change
        place = address if isinstance(address, int) else None
        try:
            rows.add(start + offset_ns, change, place, held[device], f"cuda:{device or 0}")
        except OverflowError:
            damaged += 1
    if len(rows):
        times = rows.number("t_ns")
        shard.write("memory", {**rows.columns(), "step": step_of(times, steps)})
    return damaged


def write_counters(database: Database, offset_ns: int, shard: BulkShard) -> None:
    """Write the metrics that were sampled on GPUs.

    Args:
        database: the export.
        offset_ns: what to add to their times.
        shard: where they go.
    """
    names = {
        (kind, metric): str(name)
        for kind, metric, name in database.rows(
            "TARGET_INFO_GPU_METRICS", ("typeId", "metricId", "metricName")
        )
    }
    rows = Rows(("t_ns",), ("name", "device"), ("value",))
    for at, kind, metric, value in database.rows(
        "GPU_METRICS", ("timestamp", "typeId", "metricId", "value"), order="timestamp"
    ):
        if isinstance(at, int) and isinstance(value, int | float):
            device = f"cuda:{kind & _GPU_OF_TYPE}" if isinstance(kind, int) else ""
            name = names.get((kind, metric), f"metric {metric}")
            rows.add(at + offset_ns, name, device, float(value))
    if len(rows):
        shard.write("counters", rows.columns())
