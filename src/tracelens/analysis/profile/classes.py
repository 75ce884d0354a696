"""When the host and the devices did what: the classes that a step's time is split among."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis.profile.columns import durations, rows_of
from tracelens.analysis.profile.data import DEVICE_KINDS, ProfileData
from tracelens.analysis.profile.intervals import EMPTY, Intervals, Ints, union

_OPTIMIZER = re.compile(r"Optimizer\.(step|zero_grad)#")
_HOST_COMM = re.compile(r"^(c10d::|(gloo|nccl|mpi|ucc):|record_param_comms)", re.IGNORECASE)
_DATA = re.compile(r"^enumerate\((DataLoader|DataPipe)\)#")

DEVICE_NAMES = ("forward", "backward", "optimizer", "other", "communication", "copies")


def device_intervals(data: ProfileData) -> dict[str, Intervals]:
    """When the devices did what; kernels of unknown phase are ``other``."""
    columns, classes = data.device, data.device_class()
    starts, ends = columns.ints("start_ns"), columns.ints("start_ns") + durations(columns)
    phase = kernel_phases(data)
    found = {
        name: union(starts[mask], ends[mask])
        for name in ("forward", "backward", "optimizer")
        if (mask := (classes == 0) & (phase == _PHASES.index(name))).any()
    }
    rest = (classes == 0) & ~np.isin(phase, [_PHASES.index(n) for n in found])
    found["other"] = union(starts[rest], ends[rest])
    found["communication"] = union(starts[classes == 1], ends[classes == 1])
    found["copies"] = union(starts[classes >= 2], ends[classes >= 2])
    return {name: found.get(name, EMPTY) for name in DEVICE_NAMES}


_PHASES = ("other", "data", "forward", "backward", "optimizer")


def phase_codes(data: ProfileData) -> Ints:
    """Return each op's phase as a position in ``("other", "data", "forward", ...)``."""
    codes, texts = data.op_phase
    return np.array([_PHASES.index(t) if t in _PHASES else 0 for t in texts] + [0])[codes]


def kernel_phases(data: ProfileData) -> Ints:
    """Return the phase of the op that launched each row of ``data.device``; 0 if unknown."""
    phases = np.append(phase_codes(data), 0)
    return np.asarray(phases[rows_of(data.ops.ints("op_id"), data.device.ints("op_id"))])


def host_class_masks(data: ProfileData) -> dict[str, NDArray[np.bool_]]:
    """Return which spans are what: ``runtime data communication optimizer``, bool (spans,)."""
    spans, names = data.spans, data.spans.texts("name")
    named = {
        "data": spans.where("name", [bool(_DATA.match(name)) for name in names]),
        "communication": spans.where("name", [bool(_HOST_COMM.match(name)) for name in names]),
        "optimizer": spans.where("name", [bool(_OPTIMIZER.match(name)) for name in names]),
    }
    device_range = spans.is_one_of("kind", ["device_annotation"])
    masks = {name: mask & ~device_range for name, mask in named.items()}
    masks["runtime"] = spans.is_one_of("kind", ["runtime", "sync"])
    masks["data"] |= spans.is_one_of("kind", ["data"])
    return masks


def host_intervals(data: ProfileData) -> dict[str, Intervals]:
    """Return when the host did what: ``runtime data communication optimizer backward ...``."""
    masks = host_class_masks(data)
    found = {name: data.span_intervals(mask) for name, mask in masks.items()}
    starts = data.ops.ints("start_ns")
    ends = starts + durations(data.ops)
    phases, parent = phase_codes(data), data.op_parent
    # What an op calls lies within it: only roots, and ops of another phase, add anything.
    edge = (parent < 0) | (phases != phases[parent])
    # Where collectives run on a device, what the host does of them is launching.
    on_device = bool((data.device_class() == DEVICE_KINDS.index("comm")).any())
    comm = data.ops.where("name", [bool(_HOST_COMM.match(n)) for n in data.ops.texts("name")])
    if on_device:
        comm, found["communication"] = np.zeros_like(comm), EMPTY
    for number, name in enumerate(_PHASES):
        mask = edge & (phases == number)
        found[name] = found.get(name, EMPTY) | union(starts[mask], ends[mask])
    if comm.any():
        found["communication"] |= union(starts[comm], ends[comm])
    rest = ~data.spans.is_one_of("kind", ["step", "device_annotation", "runtime", "sync", "data"])
    outer = rows_of(data.spans.ints("span_id"), data.spans.ints("parent_id"))
    inside = np.append(rest, False)[outer]
    found["other"] |= data.span_intervals(rest & ~inside)
    return found
