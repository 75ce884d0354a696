"""How near ops come to what their device can do at most."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis.names import canonical
from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.devices import DeviceLimits
from tracelens.analysis.profile.flops import FORMULAS, HEAVY, Work, work_of
from tracelens.analysis.profile.intervals import Ints
from tracelens.analysis.profile.opcall import OpCall, one_line
from tracelens.analysis.profile.opstats import levels, op_times

_PRECISION = {
    "float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "float8_e4m3fnuz": "fp8",
    "float8_e5m2fnuz": "fp8",
}  # fmt: skip
_MATRIX = ("GEMM", "CONV", "SDPA")


@dataclass(frozen=True, slots=True)
class RooflineGroup(Answer):
    """Calls of one op with equal arguments.

    Attributes:
        name: the op.
        kind: of work, see ``flops.Work``.
        shapes: sizes of its inputs, JSON.
        dtype: element type.
        count: calls that took time.
        flops: of one call.
        bytes: of one call, the least that must move.
        total_ns: time of all calls: device time of what was launched in them, host time where no
            device worked.
        mean_ns: of one.
        tflops: reached, mean, 10^12 FLOP a second.
        bandwidth_gbps: reached, mean, 10^9 bytes a second.
        intensity: FLOP a byte.
        bound: ``"compute"`` or ``"memory"``: which roof is lower at that intensity; ``""`` without
            limits.
        roof_share: of the lower roof reached; ``None`` without limits.
        gain_ns: ``total_ns`` less the time at the roof: most that a perfect kernel could save.
    """

    name: str
    kind: str
    shapes: str
    dtype: str
    count: int
    flops: int
    bytes: int
    total_ns: int
    mean_ns: float
    tflops: float
    bandwidth_gbps: float
    intensity: float
    bound: str
    roof_share: float | None
    gain_ns: int | None


@dataclass(frozen=True, slots=True)
class RooflineAnswer(Answer):
    """The roofline of a rank.

    Attributes:
        limits: of the device, ``None`` if they are not known.
        groups: by op and arguments, the longest total time first.
        flops: of all calls.
        covered_ns: time of ops with a formula.
        total_ns: time of all device work, or host time of all outermost ops where there is none.
        tflops: reached over ``covered_ns``.
        without_shapes: ops that have a formula and whose arguments were not recorded.
    """

    limits: DeviceLimits | None
    groups: tuple[RooflineGroup, ...]
    flops: int
    covered_ns: int
    total_ns: int
    tflops: float
    without_shapes: int


def roofline(data: ProfileData, limits: DeviceLimits | None = None) -> RooflineAnswer | None:
    """Tell FLOP, bytes and speed of ops by their arguments; ``None`` without any op.

    Of ops inside one another that both have a formula one counts: the innermost matrix product,
    convolution, attention, normalisation, embedding or fused optimizer, and elsewhere the
    innermost op. The roof is ``min(peak, intensity x bandwidth)`` (Williams et al., Roofline,
    2009). Matrix ops in float32 are held against the tf32 peak where they are faster than the fp32
    peak allows.

    Args:
        data: the profile.
        limits: of the device: ``devices.limits_of`` its name, measured, or given.
    """
    ops = data.ops
    if not len(ops):
        return None
    works, group = _works(data)
    counted = _counted(data, works, group)
    times = op_times(data)
    on_device = bool(times.self_device.any())
    spent = times.device if on_device else times.host
    rows = np.flatnonzero(counted & (spent > 0))
    kinds = np.bincount(group[rows], minlength=len(works))
    total = np.bincount(group[rows], weights=spent[rows], minlength=len(works)).astype(np.int64)
    first = np.zeros(len(works), dtype=np.int64)
    first[group[::-1]] = np.arange(len(ops))[::-1]
    found = []
    for at in np.flatnonzero(kinds):
        work = works[int(at)]
        assert work is not None
        found.append(_group(data, int(first[at]), work, int(kinds[at]), int(total[at]), limits))
    found.sort(key=lambda line: -line.total_ns)
    flops = sum(line.flops * line.count for line in found)
    covered = sum(line.total_ns for line in found)
    whole = int((durations(data.kernels) if on_device else times.host[data.op_parent < 0]).sum())
    return RooflineAnswer(
        limits, tuple(found), flops, covered, whole, flops / covered / 1e3 if covered else 0.0,
        _unknown(data, works, group),
    )  # fmt: skip


def _works(data: ProfileData) -> tuple[list[Work | None], Ints]:
    """Work out each distinct call once; return them, and which one each op is."""
    ops = data.ops
    columns = ("name", "in_shapes", "in_dtypes", "in_values", "shapes")
    key = np.zeros(len(ops), dtype=np.int64)
    for name in columns:
        # Numbered anew after each column, so that the product of the sizes never overflows.
        _, key = np.unique(
            key * (len(ops.texts(name)) + 1) + ops.codes(name) + 1, return_inverse=True
        )
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    texts = {name: [*ops.texts(name), ""] for name in columns}
    works = []
    for row in first:
        name, *arguments = (texts[c][int(ops.codes(c)[row])] for c in columns)
        works.append(work_of(name, OpCall.parse(*arguments)))
    return works, group.astype(np.int64, copy=False)


def _counted(data: ProfileData, works: list[Work | None], group: Ints) -> NDArray[np.bool_]:
    heavy = np.array([work is not None and work.kind in HEAVY for work in works])[group]
    light = np.array([work is not None and work.kind not in HEAVY for work in works])[group]
    parent = data.op_parent
    by_depth = levels(parent)[1:]
    has_heavy, has_any = np.zeros_like(heavy), np.zeros_like(heavy)
    for rows in reversed(by_depth):
        np.logical_or.at(has_heavy, parent[rows], (heavy | has_heavy)[rows])
        np.logical_or.at(has_any, parent[rows], (heavy | light | has_any)[rows])
    in_heavy = np.zeros_like(heavy)
    for rows in by_depth:
        in_heavy[rows] = (heavy | in_heavy)[parent[rows]]
    return np.asarray((heavy & ~has_heavy) | (light & ~has_any & ~in_heavy))


def _group(
    data: ProfileData, row: int, work: Work, count: int, total_ns: int, limits: DeviceLimits | None
) -> RooflineGroup:
    ops = data.ops
    mean = total_ns / count
    line = RooflineGroup(
        name=ops.texts("name")[int(ops.codes("name")[row])],
        kind=work.kind,
        shapes=one_line([*ops.texts("in_shapes"), ""][int(ops.codes("in_shapes")[row])]),
        dtype=work.dtype,
        count=count,
        flops=work.flops,
        bytes=work.bytes,
        total_ns=total_ns,
        mean_ns=mean,
        tflops=work.flops / mean / 1e3,
        bandwidth_gbps=work.bytes / mean,
        intensity=work.flops / work.bytes if work.bytes else 0.0,
        bound="",
        roof_share=None,
        gain_ns=None,
    )
    return line if limits is None else _under_roof(line, work, limits)


def _under_roof(line: RooflineGroup, work: Work, limits: DeviceLimits) -> RooflineGroup:
    peak = _peak(line, work, limits)
    ideal = {}
    if peak and work.flops:
        ideal["compute"] = work.flops / peak / 1e3
    if limits.bandwidth_gbps and work.bytes:
        ideal["memory"] = work.bytes / limits.bandwidth_gbps
    if not ideal:
        return line
    bound = max(ideal, key=lambda name: ideal[name])
    gain = max(int(line.total_ns - ideal[bound] * line.count), 0)
    return replace(line, bound=bound, roof_share=ideal[bound] / line.mean_ns, gain_ns=gain)


def _peak(line: RooflineGroup, work: Work, limits: DeviceLimits) -> float | None:
    precision = _PRECISION.get(work.dtype, "fp32")
    if work.kind not in _MATRIX:
        # Other kinds run on the vector cores, whose half precision is no faster than fp32 by much.
        return limits.peak("fp64" if precision == "fp64" else "fp32")
    peak = limits.peak(precision)
    if precision == "fp32" and peak is not None and line.tflops > peak:
        return limits.peak("tf32") or peak
    return peak


def _unknown(data: ProfileData, works: list[Work | None], group: Ints) -> int:
    names = data.ops.where("name", [canonical(text) in FORMULAS for text in data.ops.texts("name")])
    missing = np.array([work is None for work in works])[group]
    return int((names & missing & (data.ops.codes("in_shapes") < 0)).sum())
