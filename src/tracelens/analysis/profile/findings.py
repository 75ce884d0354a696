"""What is worth changing, why, and how much it could save at most."""

from __future__ import annotations

from typing import Any

from tracelens.analysis.profile import findingrules as rules
from tracelens.analysis.profile import kernelrules
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.devices import DeviceLimits
from tracelens.analysis.profile.launch import launches
from tracelens.analysis.profile.steps import StepsAnswer, split_steps, typical

Json = dict[str, Any]


def profile_findings(
    data: ProfileData,
    *,
    limits: DeviceLimits | None = None,
    split: StepsAnswer | None = None,
) -> list[Json]:
    """Return findings about speed and memory, the greatest possible gain first.

    Shares are of the steps of usual length (``steps.typical``) wherever the steps are what counts.

    Args:
        data: one rank's profile.
        limits: of its device, for advice on slow kernels.
        split: ``split_steps(data)``, if known.

    Returns:
        Findings in the form of ``Session.report_finding``: ``t`` (``"finding"``), ``rule``,
        ``verdict`` (``"structural"``), ``severity``, ``message``, ``advice``, ``rank``, ``step``
        (``None``: all), ``evidence`` (the figures), ``gain_ns`` and ``gain_share`` of the steps:
        what would be saved if the cause vanished and nothing else took its place, an upper bound;
        ``view``: the view of ``tracelens profile`` that shows more.
    """
    split = split_steps(data) if split is None else split
    usual = typical(split)
    launched = launches(data)
    found = [
        *rules.loading(usual),
        *rules.host_bound(data, usual, launched),
        *rules.unrecorded(data, usual),
        *rules.sync_stalls_cost(data, split),
        *rules.exposed_communication(data, usual),
        *rules.exposed_copies(usual),
        *rules.recompiles(data, split),
        *kernelrules.short_kernels(data, split, launched),
        *kernelrules.below_roof(data, limits, split),
        *kernelrules.slow_precision(data, limits, split),
        *kernelrules.pageable_copies(data, split),
        *rules.slow_steps(split),
        *rules.memory_use(data, split),
    ]
    for finding in found:
        finding["rank"] = data.rank
    return sorted(found, key=lambda finding: -finding["gain_share"])
