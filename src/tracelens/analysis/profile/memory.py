"""How much memory was held, when most, and by what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.columns import LIMITS, rows_of
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Ints

_CURVE_POINTS = 500
UNRECORDED = "(held before the trace began)"


@dataclass(frozen=True, slots=True)
class Holder(Answer):
    """What held memory at the peak, and how much.

    Attributes:
        name: owner, op, module or line.
        size_bytes: bytes held.
        count: allocations.
        share: of what was held in all.
    """

    name: str
    size_bytes: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class MemoryAnswer(Answer):
    """Memory of one device.

    Attributes:
        device: ``cpu``, ``cuda:0`` ...
        allocations: allocations recorded.
        frees: frees recorded.
        peak_bytes: most that was allocated at once.
        peak_ns: when.
        peak_step: the step of that moment; -1 outside of steps.
        reserved_bytes: what the allocator had reserved then; ``None`` if it was not told.
        peak_reserved_bytes: most that it had reserved at once.
        fragmentation: share of the reserved memory that was not allocated at the peak.
        end_bytes: allocated at the end of the trace.
        step_growth_bytes: by how much the memory allocated at the end of a step grew from step to
            step, the median; above 0 where something is kept. ``None`` below three steps.
        holders: what held the peak's memory, by ``owner``, ``op``, ``module`` and ``line``; the
            allocations that were live then, and what was held before the trace began.
        curve: over time: ``t_ns``, ``allocated_bytes`` and ``reserved_bytes``, the largest of each
            interval.
    """

    device: str
    allocations: int
    frees: int
    peak_bytes: int
    peak_ns: int
    peak_step: int
    reserved_bytes: int | None
    peak_reserved_bytes: int | None
    fragmentation: float | None
    end_bytes: int
    step_growth_bytes: int | None
    holders: dict[str, list[Holder]]
    curve: dict[str, list[int]]


def memory(data: ProfileData, *, top: int = 10) -> list[MemoryAnswer]:
    """Tell the peak of each device and who held it, the device that held most first.

    What was allocated is what the profiler says, or the running sum of the recorded sizes where it
    says nothing. An allocation is live until the next free of its address on its device.
    """
    columns = data.memory
    if not len(columns):
        return []
    found = []
    for code, device in enumerate(columns.texts("device")):
        rows = np.flatnonzero(columns.codes("device") == code)
        if len(rows):
            order = rows[np.argsort(columns.ints("t_ns")[rows], kind="stable")]
            found.append(_of_device(data, device, order, top))
    return sorted(found, key=lambda answer: -answer.peak_bytes)


def _of_device(data: ProfileData, device: str, rows: Ints, top: int) -> MemoryAnswer:
    columns = data.memory
    size, t = columns.ints("size_bytes")[rows], columns.ints("t_ns")[rows]
    told = columns.floats("allocated_bytes")[rows]
    reserved = columns.floats("reserved_bytes")[rows]
    held = size.cumsum() if np.isnan(told).all() else _carried(told)
    held = held - min(int(held.min()), 0)  # what was freed without its allocation was held before
    peak = int(held.argmax())
    has_reserved = not np.isnan(reserved).all()
    kept = _carried(reserved) if has_reserved else None
    live = np.flatnonzero(_live(columns.ints("address")[rows], size, peak))
    fragmentation = None
    if kept is not None and kept[peak] > 0:
        fragmentation = float(max(kept[peak] - held[peak], 0) / kept[peak])
    return MemoryAnswer(
        device=device,
        allocations=int((size > 0).sum()),
        frees=int((size < 0).sum()),
        peak_bytes=int(held[peak]),
        peak_ns=int(t[peak]),
        peak_step=_step_at(data, int(t[peak])),
        reserved_bytes=None if kept is None else int(kept[peak]),
        peak_reserved_bytes=None if kept is None else int(kept.max()),
        fragmentation=fragmentation,
        end_bytes=int(held[-1]),
        step_growth_bytes=_growth(data, t, held),
        holders=_holders(data, rows[live], int(held[peak]), top),
        curve=_curve(t, held, kept),
    )


def _carried(values: NDArray[np.float64]) -> Ints:
    """Fill what was not told with the last that was; 0 before the first."""
    known = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(len(values))))
    sound = np.clip(np.nan_to_num(values), -LIMITS["size_bytes"], LIMITS["size_bytes"])
    return np.where(known >= 0, sound[known], 0).astype(np.int64)


def _live(address: Ints, size: Ints, peak: int) -> NDArray[np.bool_]:
    """Return which rows allocate what is still allocated after row ``peak``.

    Args:
        address: shape (rows,), in order of time.
        size: bytes, above 0 for allocations.
        peak: a row.
    """
    order = np.argsort(address, kind="stable")
    ordered = address[order]
    # The next row of the same address ends an allocation: its free, or its use for another.
    same = np.append(ordered[1:] == ordered[:-1], False)
    until = np.where(same, np.append(order[1:], 0), len(address))
    ended = np.empty(len(address), dtype=np.int64)
    ended[order] = until
    rows = np.arange(len(address))
    return np.asarray((size > 0) & (rows <= peak) & (ended > peak))


def _holders(data: ProfileData, rows: Ints, held: int, top: int) -> dict[str, list[Holder]]:
    columns, ops = data.memory, data.ops
    size = columns.ints("size_bytes")[rows]
    op = rows_of(ops.ints("op_id"), columns.ints("op_id")[rows])
    rest = held - int(size.sum())

    def of_op(name: str) -> tuple[Ints, Sequence[str]]:
        return np.append(ops.codes(name), -1)[op], ops.texts(name)

    files, codes = columns.texts("file"), columns.codes("file")[rows]
    line = columns.ints("line")[rows]
    op_file, op_files = of_op("file")
    op_line = np.append(ops.ints("line"), -1)[op]
    names = [*files, *op_files]
    code = np.where(codes >= 0, codes, np.where(op_file >= 0, op_file + len(files), -1))
    number = np.where(codes >= 0, line, op_line) + 1
    width = int(number.max(initial=0)) + 1

    def place(key: int) -> str:
        return f"{names[key // width]}:{key % width - 1}" if key >= 0 else ""

    owners = columns.texts("owner")
    groups: dict[str, tuple[Ints, Callable[[int], str]]] = {
        "owner": (columns.codes("owner")[rows], lambda key: owners[key] if key >= 0 else ""),
        "line": (np.where(code < 0, -1, code * width + number), place),
    }
    for name, column in (("op", "name"), ("module", "module")):
        keys, texts = of_op(column)
        groups[name] = keys, lambda key, texts=texts: texts[key] if key >= 0 else ""  # type: ignore[misc]
    return {
        name: _ranked(*groups[name], size, rest, held, top)
        for name in ("owner", "op", "module", "line")
    }


def _ranked(
    keys: Ints, label: Callable[[int], str], size: Ints, rest: int, held: int, top: int
) -> list[Holder]:
    values, group = np.unique(keys, return_inverse=True)
    total = np.bincount(group, weights=size, minlength=len(values)).astype(np.int64)
    count = np.bincount(group, minlength=len(values))
    whole = max(held, 1)
    found = [
        Holder(label(int(key)) or "(unknown)", int(sum_), int(n), sum_ / whole)
        for key, sum_, n in zip(values, total, count, strict=True)
    ]
    if rest > 0:
        # Without addresses no allocation can be told live from freed.
        found.append(Holder(UNRECORDED if len(keys) else "(unknown)", rest, 0, rest / whole))
    return sorted(found, key=lambda holder: -holder.size_bytes)[:top]


def _step_at(data: ProfileData, t_ns: int) -> int:
    steps = data.steps
    inside = np.flatnonzero((steps.start_ns <= t_ns) & (t_ns < steps.end_ns))
    return int(steps.step[inside[0]]) if len(inside) and steps.marked else -1


def _growth(data: ProfileData, t: Ints, held: Ints) -> int | None:
    steps = data.steps
    if not steps.marked or len(steps) < 3:
        return None
    at = np.searchsorted(t, steps.end_ns, side="right") - 1
    return int(np.median(np.diff(np.where(at >= 0, held[at], 0))))


def _curve(t: Ints, held: Ints, kept: Ints | None) -> dict[str, list[int]]:
    edges = np.unique(np.linspace(0, len(t), _CURVE_POINTS + 1).astype(np.int64)[:-1])
    reserved = [] if kept is None else np.maximum.reduceat(kept, edges).tolist()
    return {
        "t_ns": t[edges].tolist(),
        "allocated_bytes": np.maximum.reduceat(held, edges).tolist(),
        "reserved_bytes": reserved,
    }
