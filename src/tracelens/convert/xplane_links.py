"""Which op a kernel of an XPlane profile belongs to, and what on a device only holds others."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

from tracelens.convert._columns import Rows, parents
from tracelens.convert.xplane_profile import ProfiledKernel


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

    def find(self, kernel: ProfiledKernel, at_ns: int, *, launched: bool) -> int | None:
        """Return the op of a kernel's name that ran at a time.

        Args:
            kernel: the kernel.
            at_ns: when it was launched, or began.
            launched: that is when it was launched: the op must have been running then.
        """
        hlo = f"{kernel.hlo_module}:{kernel.hlo_op}" if kernel.hlo_op else ""
        for name in (hlo, kernel.op):
            ranges = self._by_name.get(name) if name else None
            if not ranges:
                continue
            last = bisect.bisect_right(ranges, (at_ns, 1 << 63, 0)) - 1
            for start, end, number in reversed(ranges[max(0, last - 15) : last + 1]):
                if start <= at_ns and (end > at_ns or not launched):
                    return number
        return None


def containers(found: list[ProfiledKernel]) -> list[bool]:
    """Tell which ranges of a device's streams only hold others (loops and calls of XLA)."""
    if not any(each.stream == 0 and each.corr_id is None for each in found):
        return [False] * len(found)
    start = np.array([each.start_unix_ns for each in found], dtype=np.int64)
    end = start + np.array([each.duration_ns for each in found], dtype=np.int64)
    stream = np.array([each.stream for each in found], dtype=np.int64)
    around = parents(stream, start, end)
    names = {"while", "conditional", "call"}
    return [
        held and str(each.details.get("hlo_category", "")) in names
        for each, held in zip(found, np.isin(np.arange(len(found)), around).tolist(), strict=True)
    ]
