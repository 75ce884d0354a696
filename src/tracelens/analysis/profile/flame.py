"""Folded stacks of host and device: what a flame graph is drawn from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.columns import Columns, durations, rows_of
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Ints
from tracelens.analysis.profile.opstats import levels, op_times


@dataclass(frozen=True, slots=True)
class FlameAnswer(Answer):
    """Folded stacks.

    Attributes:
        side: ``host`` or ``device``.
        source: ``samples``, ``python`` (frames as the profiler saw them), ``spans``, ``ops`` or
            ``kernels``.
        stacks: frames, outermost first, and the ns spent in the innermost one itself; the longest
            first.
        total_ns: sum over all stacks.
    """

    side: str
    source: str
    stacks: tuple[tuple[tuple[str, ...], int], ...]
    total_ns: int

    def folded(self) -> str:
        """Return lines ``outer;inner 1234``, as flamegraph.pl and speedscope read them."""
        return "\n".join(
            f"{';'.join(frame.replace(';', ',') for frame in stack)} {length}"
            for stack, length in self.stacks
        )


def host_flame(data: ProfileData, *, max_depth: int = 128) -> FlameAnswer | None:
    """Return the host's stacks; ``None`` if neither samples, frames nor ops were recorded.

    Samples where there are any; else the Python frames and the calls in them; else the ops in their
    nesting. Times of stacks from several threads add up.
    """
    if len(data.samples):
        return _answer("host", "samples", _of_samples(data))
    if data.spans.is_one_of("kind", ["python", "module"]).any():
        return _answer("host", "python", _of_spans(data, max_depth))
    if len(data.ops):
        times = op_times(data)
        return _answer("host", "ops", _nested(data.ops, data.op_parent, times.self_host, max_depth))
    if len(data.spans):
        return _answer("host", "spans", _of_spans(data, max_depth))
    return None


def device_flame(data: ProfileData, *, max_depth: int = 128) -> FlameAnswer | None:
    """Return device time under module, ops and kernel; ``None`` without device work."""
    kernels = data.kernels
    if not len(kernels):
        return None
    paths, number = _paths(data.ops, data.op_parent, max_depth)
    above = np.append(number, -1)[data.kernel_op]
    module = np.append(data.ops.codes("module"), -1)[data.kernel_op]
    key = (above + 1) * (len(data.ops.texts("module")) + 1) + module + 1
    key = key * len(kernels.texts("name")) + kernels.codes("name")
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    total = np.bincount(group, weights=durations(kernels)).astype(np.int64)
    names, codes, modules = kernels.texts("name"), kernels.codes("name"), data.ops.texts("module")
    stacks: dict[tuple[str, ...], int] = defaultdict(int)
    for row, length in zip(first.tolist(), total.tolist(), strict=True):
        path = modules[module[row]].split(".") if module[row] >= 0 else []
        ops = paths[above[row]] if above[row] >= 0 else ()
        stack = (*filter(None, path), *ops, names[int(codes[row])])
        stacks[stack] += length
    return _answer("device", "kernels", stacks)


def _of_samples(data: ProfileData) -> dict[tuple[str, ...], int]:
    samples = data.samples
    texts, codes = samples.texts("stack"), samples.codes("stack")
    total = np.bincount(
        codes[codes >= 0], weights=durations(samples)[codes >= 0], minlength=len(texts)
    ).astype(np.int64)
    return {
        tuple(text.split("\n")): int(length)
        for text, length in zip(texts, total, strict=True)
        if length
    }


def _of_spans(data: ProfileData, max_depth: int) -> dict[tuple[str, ...], int]:
    spans = data.spans
    parent = rows_of(spans.ints("span_id"), spans.ints("parent_id"))
    own = durations(spans).copy()
    device = spans.is_one_of("kind", ["device_annotation"])
    inner = (parent >= 0) & ~device
    np.subtract.at(own, parent[inner], durations(spans)[inner])
    own[device] = 0
    # A step's number would tell equal stacks apart.
    marks = spans.is_one_of("kind", ["step"])
    for _ in range(4):
        parent = np.where(marks[parent] & (parent >= 0), parent[parent], parent)
    own[marks] = 0
    return _nested(spans, parent, own, max_depth)


def _nested(
    columns: Columns, parent: Ints, own: Ints, max_depth: int
) -> dict[tuple[str, ...], int]:
    paths, number = _paths(columns, parent, max_depth)
    known = number >= 0
    total = np.bincount(
        number[known], weights=np.maximum(own, 0)[known], minlength=len(paths)
    ).astype(np.int64)
    return {path: int(length) for path, length in zip(paths, total, strict=True) if length}


def _paths(columns: Columns, parent: Ints, max_depth: int) -> tuple[list[tuple[str, ...]], Ints]:
    """Return the distinct paths of names, and each row's; deeper rows have their ancestor's."""
    texts, codes = columns.texts("name"), columns.codes("name")
    paths: list[tuple[str, ...]] = []
    number = np.full(len(columns), -1, dtype=np.int64)
    for depth, rows in enumerate(levels(parent)):
        above = number[parent[rows]] if depth else np.full(len(rows), -1, dtype=np.int64)
        if depth >= max_depth:
            number[rows] = above
            continue
        _, first, group = np.unique(
            (above + 1) * (len(texts) + 1) + codes[rows], return_index=True, return_inverse=True
        )
        start = len(paths)
        for at in first.tolist():
            outer = paths[above[at]] if above[at] >= 0 else ()
            paths.append((*outer, texts[int(codes[rows[at]])]))
        number[rows] = start + group
    return paths, number


def _answer(side: str, source: str, stacks: dict[tuple[str, ...], int]) -> FlameAnswer:
    ordered = tuple(sorted(stacks.items(), key=lambda item: (-item[1], item[0])))
    return FlameAnswer(side, source, ordered, sum(stacks.values()))
