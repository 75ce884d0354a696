"""The first page of a profile: the device, the steps, the largest kernels and ops, the findings."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.device import device_totals
from tracelens.analysis.profile.devices import DeviceLimits
from tracelens.analysis.profile.findings import profile_findings
from tracelens.analysis.profile.kernels import top_kernels, top_ops
from tracelens.analysis.profile.memory import memory
from tracelens.analysis.profile.steps import split_steps, typical

Json = dict[str, Any]


def profile_overview(
    data: ProfileData,
    *,
    top: int = 5,
    limits: DeviceLimits | None = None,
) -> Json:
    """Return the first page of a profile, JSON-ready; times in ns.

    Args:
        data: one rank's profile.
        top: rows of each ranking.
        limits: of its device.

    Returns:
        ``rank``, ``ranks`` (all of the trace), ``rows`` (of each table), ``device``
        (``DeviceTotals``, the first over all devices), ``steps`` (count, median length, the split
        of all steps and of those of usual length), ``kernels``, ``ops``, ``memory`` (peak by
        device), ``findings``.
    """
    split = split_steps(data)
    usual = typical(split)
    lengths = [step.duration_ns for step in split.steps]
    return {
        "rank": data.rank,
        "ranks": data.reader.ranks(),
        "rows": {
            table.table: len(table)
            for table in (data.ops, data.kernels, data.spans, data.memory, data.samples)
        },
        "device": [totals.as_json() for totals in device_totals(data)],
        "steps": {
            "count": len(split.steps) if split.marked else 0,
            "median_ns": int(np.median(lengths)) if split.marked else None,
            "whole": split.whole.as_json(),
            "typical": usual.whole.as_json(),
            "typical_count": len(usual.steps),
        },
        "kernels": [group.as_json() for group in top_kernels(data, top=top)],
        "ops": [group.as_json() for group in top_ops(data, top=top)],
        "memory": [
            {"device": answer.device, "peak_bytes": answer.peak_bytes, "step": answer.peak_step}
            for answer in memory(data, top=top)
        ],
        "findings": profile_findings(data, limits=limits, split=split),
    }
