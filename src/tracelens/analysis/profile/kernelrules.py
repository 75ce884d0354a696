"""Rules about kernels: too short, in slow precision, from slow memory, far from the roof."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.device import device_totals
from tracelens.analysis.profile.devices import DeviceLimits
from tracelens.analysis.profile.findingrules import NOTABLE, Json, finding, percent
from tracelens.analysis.profile.launch import LaunchAnswer
from tracelens.analysis.profile.roofline import roofline
from tracelens.analysis.profile.steps import StepsAnswer
from tracelens.texts import duration

SHORT_SHARE = 0.5
ROOF_SHARE = 0.4

_FP32 = re.compile(r"sgemm|scudnn|_f32f32_f32f32_", re.IGNORECASE)
"""Kernels of cuBLAS, cuDNN and CUTLASS that multiply float32 without tensor cores."""

_NOT_FP32 = re.compile(r"tf32|tensorop|1688|16816|hmma|h884", re.IGNORECASE)
"""Marks of those that use tensor cores after all."""


def short_kernels(
    data: ProfileData, split: StepsAnswer, launched: LaunchAnswer | None
) -> Iterator[Json]:
    """Many kernels so short that launching them costs as much."""
    answer, totals = launched, device_totals(data)
    if answer is None or not totals or answer.short < 100 or answer.short_share < SHORT_SHARE:
        return
    share = answer.short_ns / max(totals[0].kernel_sum_ns, 1)
    if share < NOTABLE:
        return
    yield finding(
        "short_kernels",
        f"{answer.short} of the kernels ({percent(answer.short_share)}) are shorter than 10 µs; "
        f"they take {percent(share)} of the kernel time.",
        "Fuse small ops: torch.compile or XLA, fused optimizers, larger batches.",
        split,
        answer.short_ns,
        {
            "short": answer.short,
            "short_ns": answer.short_ns,
            "median_delay": answer.median_delay_ns,
        },
        severity="info",
    )


def below_roof(
    data: ProfileData, limits: DeviceLimits | None, split: StepsAnswer
) -> Iterator[Json]:
    """Ops far below what the device allows."""
    answer = roofline(data, limits) if limits is not None else None
    if answer is None:
        return
    for group in answer.groups[:20]:
        gain = group.gain_ns or 0
        share = gain / split.whole.duration_ns if split.whole.duration_ns else 0.0
        if group.roof_share is None or group.roof_share > ROOF_SHARE or share < NOTABLE:
            continue
        yield finding(
            "below_roof",
            f"{group.name} {group.shapes} in {group.dtype or 'unknown type'} reaches "
            f"{percent(group.roof_share)} of what {limits.name if limits else ''} allows "
            f"({group.bound}-bound).",
            "Use lower precision (autocast to bf16, torch.set_float32_matmul_precision('high')),"
            " sizes that are multiples of 8 (64 on newer devices), channels_last for convolutions;"
            " fuse ops that are memory-bound.",
            split,
            gain,
            group.as_json(),
        )


def slow_precision(
    data: ProfileData, limits: DeviceLimits | None, split: StepsAnswer
) -> Iterator[Json]:
    """Matrix products and convolutions in float32 on a device with faster matrix cores."""
    slow = limits.peak("fp32") if limits is not None else None
    fast = (limits.peak("tf32") or limits.peak("fp16")) if limits is not None else None
    if limits is None or not slow or not fast or fast <= slow:
        return
    kernels = data.kernels
    texts = kernels.texts("name")
    mask = kernels.where("name", [bool(_FP32.search(t) and not _NOT_FP32.search(t)) for t in texts])
    spent = int(durations(kernels)[mask].sum())
    gain = int(spent * (1 - slow / fast))
    if not split.whole.duration_ns or gain / split.whole.duration_ns < NOTABLE:
        return
    tf32 = limits.peak("tf32") is not None
    yield finding(
        "fp32_matmul",
        f"Matrix products and convolutions in float32 without tensor cores take {duration(spent)}; "
        f"{limits.name} does them {fast / slow:.0f} times as fast in "
        f"{'tf32' if tf32 else 'fp16'}.",
        ("torch.set_float32_matmul_precision('high') and torch.backends.cudnn.allow_tf32 = True, or"
         if tf32 else "Mixed precision:")
        + " torch.autocast with bf16 or fp16 (GradScaler for fp16); Keras: mixed_precision.",
        split,
        gain,
        {"spent_ns": spent, "kernels": int(mask.sum())},
    )  # fmt: skip


def pageable_copies(data: ProfileData, split: StepsAnswer) -> Iterator[Json]:
    """Copies between the device and memory that is not pinned (as Nsight Systems' rule)."""
    kernels = data.kernels
    mask = kernels.where("name", ["Pageable" in text for text in kernels.texts("name")])
    spent = int(durations(kernels)[mask].sum())
    if not split.whole.duration_ns or spent / split.whole.duration_ns < NOTABLE / 5:
        return
    size = np.maximum(kernels.ints("size_bytes")[mask], 0).sum()
    yield finding(
        "pageable_copies",
        f"{int(mask.sum())} copies between the device and unpinned memory take "
        f"{percent(spent / split.whole.duration_ns)} of the steps, and the host waits for them.",
        "Load batches into pinned memory (pin_memory=True) and copy them with non_blocking=True.",
        split,
        spent,
        {"spent_ns": spent, "size_bytes": int(size)},
    )
