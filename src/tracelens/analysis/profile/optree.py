"""From op to kernel: the ops that were called, in which, and the device work that each launched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Ints
from tracelens.analysis.profile.opstats import levels, op_times

KERNELS_UNDER_NO_OP = "(no op)"


@dataclass(slots=True)
class TreeEntry(Answer):
    """All calls that were made along one path of names.

    Attributes:
        kind: ``module``, ``op`` or ``kernel``.
        name: the last name of the path.
        count: calls.
        host_ns: their host time; 0 for kernels.
        device_ns: device time of all that was launched in them.
        self_device_ns: of what was launched in them directly.
        children: what they called and launched, the longest device time (then host time) first.
    """

    kind: str
    name: str
    count: int = 0
    host_ns: int = 0
    device_ns: int = 0
    self_device_ns: int = 0
    children: list[TreeEntry] = field(default_factory=list)


def op_tree(data: ProfileData, *, by: str = "name", max_depth: int = 64) -> TreeEntry:
    """Return the calls of ops as one tree, equal paths of names being one entry.

    Args:
        data: the profile.
        by: ``"name"``, or ``"module"`` to put the module paths of the outermost ops above them.
        max_depth: ops nested deeper than this are counted in their ancestor.
    """
    root = TreeEntry("op", "")
    entry_of, entries = _op_entries(data, by == "module", max_depth, root)
    _add_kernels(data, entry_of, entries, root)
    _sum_up(root)
    return root


def _op_entries(
    data: ProfileData, modules: bool, max_depth: int, root: TreeEntry
) -> tuple[Ints, list[TreeEntry]]:
    """Make an entry per distinct path; return each op's entry number, and the entries."""
    ops, parent = data.ops, data.op_parent
    times = op_times(data)
    texts, codes = ops.texts("name"), ops.codes("name")
    entries = [root]
    entry_of = np.zeros(len(ops), dtype=np.int64)
    for depth, rows in enumerate(levels(parent)):
        above = entry_of[parent[rows]] if depth else np.zeros(len(rows), dtype=np.int64)
        if depth == 0 and modules:
            above = _module_entries(data, rows, root, entries)
        if depth >= max_depth:
            entry_of[rows] = above
            continue
        keys, first, group = np.unique(
            above * (len(texts) + 1) + codes[rows], return_index=True, return_inverse=True
        )
        count = np.bincount(group)
        host = np.bincount(group, weights=times.host[rows]).astype(np.int64)
        for at in range(len(keys)):
            name = texts[int(codes[rows[first[at]]])]
            entry = TreeEntry("op", name, int(count[at]), int(host[at]))
            entries[int(above[first[at]])].children.append(entry)
            entries.append(entry)
        entry_of[rows] = len(entries) - len(keys) + group
    return entry_of, entries


def _module_entries(
    data: ProfileData, rows: Ints, root: TreeEntry, entries: list[TreeEntry]
) -> Ints:
    """Make entries for the module paths of the outermost ops; return theirs, shape of ``rows``."""
    texts = data.ops.texts("module")
    numbers = np.zeros(len(texts) + 1, dtype=np.int64)
    places: dict[str, int] = {"": 0}
    used = np.unique(data.ops.codes("module")[rows])
    for code in used[used >= 0]:
        numbers[code] = _place(texts[int(code)], places, entries)
    numbers[-1] = 0
    return numbers[data.ops.codes("module")[rows]]


def _place(path: str, places: dict[str, int], entries: list[TreeEntry]) -> int:
    if path not in places:
        outer, _, name = path.rpartition(".")
        above = _place(outer, places, entries)
        entries[above].children.append(TreeEntry("module", name))
        entries.append(entries[above].children[-1])
        places[path] = len(entries) - 1
    return places[path]


def _add_kernels(
    data: ProfileData, entry_of: Ints, entries: list[TreeEntry], root: TreeEntry
) -> None:
    kernels = data.kernels
    if not len(kernels):
        return
    above = np.append(entry_of, -1)[data.kernel_op]
    texts, codes = kernels.texts("name"), kernels.codes("name")
    keys, first, group = np.unique(
        above * (len(texts) + 1) + codes, return_index=True, return_inverse=True
    )
    count = np.bincount(group)
    total = np.bincount(group, weights=durations(kernels)).astype(np.int64)
    loose = TreeEntry("op", KERNELS_UNDER_NO_OP)
    for at in range(len(keys)):
        entry = TreeEntry("kernel", texts[int(codes[first[at]])], int(count[at]))
        entry.device_ns = entry.self_device_ns = int(total[at])
        number = int(above[first[at]])
        owner = entries[number] if number >= 0 else loose
        owner.children.append(entry)
        owner.self_device_ns += entry.device_ns
    if loose.children:
        loose.count = sum(child.count for child in loose.children)
        root.children.append(loose)


def _sum_up(entry: TreeEntry) -> None:
    for child in entry.children:
        _sum_up(child)
    if entry.kind != "kernel":
        entry.device_ns = sum(child.device_ns for child in entry.children)
    if entry.kind == "module" or entry.name == "":
        entry.host_ns = sum(child.host_ns for child in entry.children)
        entry.count = entry.count or sum(child.count for child in entry.children)
    entry.children.sort(key=lambda child: (-child.device_ns, -child.host_ns, child.name))


def op_kernels(data: ProfileData, op_id: int) -> list[dict[str, Any]]:
    """Return the device work that one op, or an op that it called, launched, in order of time.

    Returns:
        One dict each: ``kern_id op_id name kind device stream start_ns duration_ns``.
    """
    ids, parent = data.ops.ints("op_id"), data.op_parent
    inside = ids == op_id
    for rows in levels(parent)[1:]:
        inside[rows] |= inside[parent[rows]]
    kernels = data.kernels
    found = np.flatnonzero(np.append(inside, False)[data.kernel_op])
    found = found[np.argsort(kernels.ints("start_ns")[found], kind="stable")]
    names, kinds = kernels.texts("name"), kernels.texts("kind")
    numbers = ("kern_id", "op_id", "device", "stream", "start_ns", "duration_ns")
    return [
        {name: int(kernels.ints(name)[row]) for name in numbers}
        | {
            "name": names[int(kernels.codes("name")[row])],
            "kind": kinds[int(kernels.codes("kind")[row])],
        }
        for row in found
    ]
