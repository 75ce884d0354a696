"""Which op a kernel of an XPlane profile belongs to, and what on a device only holds others."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tracelens.convert._columns import Rows, parents
from tracelens.convert.xplane_profile import ProfiledKernel
from tracelens.convert.xplane_wire import Stat

_CONTAINERS = frozenset({"while", "conditional", "call"})
UNTOLD = frozenset(
    "id parent_id iter_num element_id correlation_id device_id context_id step_num addr run_id "
    "group_id is_root flow device_offset_ps device_duration_ps symbol_id element_size "
    "ram_usage_megabytes buffered_elements".split()
)
"""Statistics that differ from event to event, or are kept elsewhere."""


class NamedOps:
    """Finds the op of a name that ran at a time."""

    def __init__(self, ops: Rows, op_id: NDArray[np.int64]) -> None:
        self._by_name: dict[str, list[tuple[int, int, int]]] = {}
        names, modules = ops.texts("name"), ops.texts("module")
        for name, module, start, end, number in zip(
            ops.codes("name").tolist(),
            ops.codes("module").tolist(),
            ops.number("start_ns").tolist(),
            ops.number("end_ns").tolist(),
            op_id.tolist(),
            strict=True,
        ):
            key = f"{modules[module]}:{names[name]}" if module >= 0 else names[name]
            self._by_name.setdefault(key, []).append((start, end, number))
        for ranges in self._by_name.values():
            ranges.sort()

    def find(self, names: Iterable[str], at_ns: int, *, launched: bool) -> int | None:
        """Return the op of one of some names that ran at a time.

        Args:
            names: ``module:name``, the most exact first; empty ones are passed over.
            at_ns: when its kernel was launched, or began.
            launched: that is when it was launched: the op must have been running then.
        """
        for name in names:
            ranges = self._by_name.get(name) if name else None
            if not ranges:
                continue
            last = bisect.bisect_right(ranges, (at_ns, 1 << 63, 0)) - 1
            for start, end, number in reversed(ranges[max(0, last - 15) : last + 1]):
                if start <= at_ns and (end > at_ns or not launched):
                    return number
        return None


def without_containers(
    found: list[ProfiledKernel],
) -> tuple[list[ProfiledKernel], list[ProfiledKernel]]:
    """Part a TPU's work from ranges that only hold other work: loops and calls of XLA."""
    start = np.array([each.start_unix_ns for each in found], dtype=np.int64)
    end = start + np.array([each.duration_ns for each in found], dtype=np.int64)
    stream = np.array([each.stream for each in found], dtype=np.int64)
    holds = np.isin(np.arange(len(found)), parents(stream, start, end)).tolist()
    work: list[ProfiledKernel] = []
    around: list[ProfiledKernel] = []
    for each, held in zip(found, holds, strict=True):
        only = held and each.details.get("hlo_category") in _CONTAINERS
        (around if only else work).append(each)
    return work, around


def told(stats: dict[str, Stat]) -> str:
    """Return statistics as JSON, without those that differ from event to event."""
    kept = {
        key: value
        for key, value in stats.items()
        if key and not key.startswith("_") and key not in UNTOLD and not isinstance(value, bytes)
    }
    return json.dumps(kept, sort_keys=True, default=str) if kept else ""
