"""Which kernels and which ops take the time, grouped by name, shape, module or line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.columns import Columns, durations
from tracelens.analysis.profile.data import DEVICE_KINDS, ProfileData
from tracelens.analysis.profile.intervals import Ints
from tracelens.analysis.profile.opcall import one_line
from tracelens.analysis.profile.opstats import OpTimes, op_times

GROUPINGS = {
    "name": ("name",),
    "shape": ("name", "in_shapes"),
    "module": ("module",),
    "line": ("file", "line"),
}
"""What ``by`` can be, and the columns of ``ops`` that make one group."""


@dataclass(frozen=True, slots=True)
class KernelGroup(Answer):
    """Device work of one name.

    Attributes:
        name: of the kernel or copy; what it is grouped by, where that is not its name.
        kind: ``kernel``, ``comm``, ``memcpy`` or ``memset``.
        count: how many.
        total_ns: sum of their durations.
        mean_ns: mean duration.
        min_ns: shortest.
        max_ns: longest.
        share: of the sum over all device work.
        op: name of the op that launched most of it.
        occupancy: mean estimated occupancy in percent, weighted by duration; ``None`` if the
            profiler did not tell it.
    """

    name: str
    kind: str
    count: int
    total_ns: int
    mean_ns: float
    min_ns: int
    max_ns: int
    share: float
    op: str
    occupancy: float | None


@dataclass(frozen=True, slots=True)
class OpGroup(Answer):
    """Ops that have a name, shape, module or line in common.

    Attributes:
        name: the op's name, module path, or ``file:line``.
        detail: the shapes of the inputs, where grouped by shape; the line's text, where by line.
        count: ops in the group that are not directly below another of it.
        self_device_ns: device time of what they launched directly.
        device_ns: device time of what they and the ops they called launched.
        self_host_ns: their host time without that of the ops they called.
        host_ns: their host time. What is directly below another op of its group does not count
            again, neither here nor in ``device_ns`` and ``count`` (as in torch.profiler's table).
        kernels: pieces of device work launched directly.
        share: of the self device time of all ops; of self host time where no device worked.
    """

    name: str
    detail: str
    count: int
    self_device_ns: int
    device_ns: int
    self_host_ns: int
    host_ns: int
    kernels: int
    share: float


def top_kernels(
    data: ProfileData, *, by: str = "name", top: int | None = None
) -> list[KernelGroup]:
    """Rank device work by total time; unlinked work is counted like any other.

    Args:
        data: the profile.
        by: ``"name"`` of the kernel, or ``"shape"``, ``"module"``, ``"line"`` of the launching op.
        top: groups to return at most.
    """
    columns = data.kernels
    if not len(columns):
        return []
    classes, length = data.device_class(columns), durations(columns)
    if by == "name":
        keys, label = columns.codes("name"), _texts_of(columns.texts("name"))
    else:
        of_op, name_of = group_ops(data.ops, by)
        keys, label = np.append(of_op, -1)[data.kernel_op], name_of
    group, first = _groups(keys * len(DEVICE_KINDS) + classes)
    count, total = np.bincount(group), _sums(group, length)
    low = np.full(len(first), np.iinfo(np.int64).max)
    high = np.zeros(len(first), dtype=np.int64)
    np.minimum.at(low, group, length)
    np.maximum.at(high, group, length)
    op_names = [*data.ops.texts("name"), ""]
    op_of = _main_op(group, np.append(data.ops.codes("name"), -1)[data.kernel_op], length)
    everything = max(int(length.sum()), 1)
    told = columns.floats("occupancy")
    known = ~np.isnan(told)
    weight = np.bincount(group[known], weights=length[known], minlength=len(first))
    filled = np.bincount(group[known], weights=(told * length)[known], minlength=len(first))
    occupancy = np.divide(filled, weight, out=np.full(len(first), np.nan), where=weight > 0)
    return [
        KernelGroup(
            label(int(keys[first[at]])),
            DEVICE_KINDS[int(classes[first[at]])],
            int(count[at]),
            int(total[at]),
            float(total[at] / count[at]),
            int(low[at]),
            int(high[at]),
            float(total[at] / everything),
            op_names[int(op_of[at])],
            None if np.isnan(occupancy[at]) else float(occupancy[at]),
        )
        for at in _largest(total, top)
    ]


def top_ops(
    data: ProfileData, *, by: str = "name", top: int | None = None, times: OpTimes | None = None
) -> list[OpGroup]:
    """Rank ops by self device time, by self host time where no device worked.

    Args:
        data: the profile.
        by: one of ``GROUPINGS``.
        top: groups to return at most.
        times: ``op_times(data)``, if known.
    """
    ops = data.ops
    if not len(ops):
        return []
    spent = op_times(data) if times is None else times
    keys, label = group_ops(ops, by)
    group, first = _groups(keys)
    parent = data.op_parent
    outer = (parent < 0) | (group != group[parent])
    sums = {
        "self_device": _sums(group, spent.self_device),
        "device": _sums(group, np.where(outer, spent.device, 0)),
        "self_host": _sums(group, spent.self_host),
        "host": _sums(group, np.where(outer, spent.host, 0)),
        "kernels": _sums(group, spent.kernels),
    }
    count = np.bincount(group[outer], minlength=len(first))
    ranking = sums["self_device"] if sums["self_device"].any() else sums["self_host"]
    everything = max(int(ranking.sum()), 1)
    details, detail_codes = _details(ops, by)
    return [
        OpGroup(
            label(int(keys[first[at]])),
            details[int(detail_codes[first[at]])],
            int(count[at]),
            int(sums["self_device"][at]),
            int(sums["device"][at]),
            int(sums["self_host"][at]),
            int(sums["host"][at]),
            int(sums["kernels"][at]),
            float(ranking[at] / everything),
        )
        for at in _largest(ranking, top)
    ]


def group_ops(ops: Columns, by: str) -> tuple[Ints, Callable[[int], str]]:
    """Return a key of each op's group, shape (ops,), and what gives a key its name.

    Raises:
        KeyError: ``by`` is not one of ``GROUPINGS``.
    """
    names = GROUPINGS[by]
    if by == "line":
        lines = ops.ints("line") + 1
        width = int(lines.max(initial=0)) + 1
        files = [*ops.texts("file"), ""]

        def place(key: int) -> str:
            file, line = divmod(key, width)
            return f"{files[file]}:{line - 1}" if file >= 0 and line > 0 else ""

        codes = ops.codes("file")
        return np.where(codes < 0, -1, codes * width + lines), place
    codes = ops.codes(names[0])
    label = _texts_of(ops.texts(names[0]))
    if len(names) == 1:
        return codes, label
    width = len(ops.texts(names[1])) + 1
    return codes * width + ops.codes(names[1]) + 1, lambda key: label(key // width)


def _main_op(group: Ints, op: Ints, length: Ints) -> Ints:
    """Return, for each group of kernels, the op code with the most time in it; -1 if none has."""
    width = int(op.max(initial=-1)) + 2
    pairs, at = np.unique(group * width + op + 1, return_inverse=True)
    total = np.where(pairs % width > 0, _sums(at, length) + 1, 0)
    order = np.lexsort((total, pairs // width))
    last = np.flatnonzero(np.append(np.diff(pairs[order] // width) > 0, True))
    return np.asarray(pairs[order][last] % width - 1, dtype=np.int64)


def _details(ops: Columns, by: str) -> tuple[list[str], Ints]:
    column = {"shape": "in_shapes", "line": "code"}.get(by)
    if column is None:
        return [""], np.zeros(len(ops), dtype=np.int64)
    return [*map(one_line, ops.texts(column)), ""], ops.codes(column)


def _texts_of(texts: Sequence[str]) -> Callable[[int], str]:
    return lambda code: texts[code] if 0 <= code < len(texts) else ""


def _groups(keys: Ints) -> tuple[Ints, Ints]:
    """Return each row's group number and the first row of each group."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return group.astype(np.int64, copy=False), first


def _sums(group: Ints, values: Ints) -> Ints:
    """Sum by group, exactly: a double holds every sum of ns below 104 days."""
    return np.asarray(np.bincount(group, weights=values), dtype=np.int64)


def _largest(values: Ints, top: int | None) -> Ints:
    return np.argsort(-values, kind="stable")[:top]
