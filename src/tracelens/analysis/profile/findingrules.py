"""The rules that make findings of a profile: one function each, a generator of findings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracelens.analysis.profile.comm import communication
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.idle import REASONS, idle
from tracelens.analysis.profile.launch import LaunchAnswer, sync_stalls
from tracelens.analysis.profile.memory import memory
from tracelens.analysis.profile.retrace import retraces
from tracelens.analysis.profile.steps import OUTLIER, StepsAnswer
from tracelens.texts import duration, size

Json = dict[str, Any]

NOTABLE = 0.05
"""A part is told from this share of the steps on (torch_tb_profiler's threshold for DataLoader)."""

SERIOUS = 0.15
"""From this share on it is a warning."""

IDLE_SHARE = 0.2
FEW_STEPS = 3
"""With fewer steps one wait can be most of all waiting, and be no habit of the program."""

FRAGMENTATION = 0.3
SHORT_SHARE = 0.5
ROOF_SHARE = 0.4
GROWTH_BYTES = 1 << 20


VIEW_OF = {
    "launch_bound": "launch",
    "host_bound": "idle",
    "long_gap": "idle",
    "outside_ops": "flame",
    "sync_stall": "launch",
    "exposed_communication": "comm",
    "short_kernels": "launch",
    "below_roof": "roofline",
    "fp32_matmul": "kernels",
    "pageable_copies": "kernels",
    "fragmentation": "memory",
    "memory_growth": "memory",
}
"""View of ``tracelens profile`` that shows more of a rule's finding, where it is not ``steps``."""


def finding(
    rule: str, message: str, advice: str, split: StepsAnswer, gain_ns: int | None,
    evidence: Json, *, step: int | None = None, severity: str | None = None,
) -> Json:  # fmt: skip
    """Return a finding in the form of ``profile_findings``."""
    share = gain_ns / split.whole.duration_ns if gain_ns and split.whole.duration_ns else 0.0
    return {
        "t": "finding",
        "rule": rule,
        "verdict": "structural",
        "severity": severity or ("warning" if share >= SERIOUS else "info"),
        "message": message,
        "advice": advice,
        "step": step,
        "evidence": evidence,
        "gain_ns": gain_ns,
        "gain_share": share,
        "view": VIEW_OF.get(rule, "steps"),
    }


def percent(share: float) -> str:
    """Return a share as a person reads it."""
    return f"{100 * share:.1f} %"


def loading(split: StepsAnswer) -> Iterator[Json]:
    """The steps wait for batches."""
    part, share = split.whole.part("data"), split.whole.share("data")
    if share < NOTABLE:
        return
    yield finding(
        "data_loading",
        f"{'The steps wait' if split.marked else 'The host waits'} for data {percent(share)} of "
        f"{'their' if split.marked else 'the'} time ({duration(part.duration_ns)}"
        f"{f' in {len(split.steps)} steps' if split.marked else ''}).",
        "Load batches ahead: DataLoader(num_workers=..., pin_memory=True, persistent_workers=True,"
        " prefetch_factor=...), or tf.data's prefetch and map(num_parallel_calls=tf.data.AUTOTUNE);"
        " move costly transforms to the device or store their results.",
        split,
        part.duration_ns,
        {"share": share, "data_ns": part.duration_ns, "hidden_ns": part.hidden_ns},
    )


def host_bound(
    data: ProfileData, split: StepsAnswer, launched: LaunchAnswer | None
) -> Iterator[Json]:
    """The device waits for the host to launch."""
    answer = idle(data)
    if answer is None or not split.whole.duration_ns:
        return
    numbers = {step.step for step in split.steps}
    usual = [step.reasons for step in answer.steps if step.step in numbers]
    host = ("ops", "other_host", "runtime")
    reasons = {name: sum(each[name] for each in usual) for name in REASONS}
    waits = sum(reasons[name] for name in host)
    share = waits / split.whole.duration_ns
    if share < IDLE_SHARE:
        return
    low, last = split.steps[0], split.steps[-1]
    gaps = data.busy().gaps(low.start_ns, last.start_ns + last.duration_ns)
    lengths = gaps.ends - gaps.starts
    longest = int(lengths.max(initial=0))
    if len(split.steps) < FEW_STEPS and longest > waits / 2:
        at = int(np.argmax(lengths))
        yield finding(
            "long_gap",
            f"The device waits {percent(share)} of the time for the host, most of it at once: "
            f"{duration(longest)}, from {duration(int(gaps.starts[at]))} on.",
            "Where that is the start of the program (loading, first allocations, choosing kernels,"
            " compiling), it is paid once: let some steps pass before recording, and mark steps.",
            split,
            None,
            {"start_ns": int(gaps.starts[at]), "duration_ns": longest, "reasons": reasons},
        )
        return
    starved = launched.starved_share if launched else 0.0
    largest = max(host, key=lambda name: reasons[name])
    yield finding(
        "launch_bound" if starved > 0.5 else "host_bound",
        f"The device waits {percent(share)} of the steps for the host to launch work; "
        f"{percent(starved)} of the kernels found an empty stream.",
        "Give the host less to do for each kernel: larger batches, torch.compile"
        " (mode='reduce-overhead' for CUDA graphs) or tf.function(jit_compile=True), fused"
        " optimizers (fused=True or foreach=True), fewer small ops and less Python in the step.",
        split,
        waits,
        {"reasons": reasons, "mostly": largest, "starved_share": starved},
    )


def unrecorded(data: ProfileData, split: StepsAnswer) -> Iterator[Json]:
    """A host without a device is in no op for much of the steps."""
    share = split.whole.share("idle")
    if split.has_device or share < IDLE_SHARE or not (len(data.ops) or len(data.spans)):
        return
    if len(data.table("tensors").ints("size_bytes")):
        return  # much of it is the storing of values
    sampled = bool(len(data.samples))
    yield finding(
        "outside_ops",
        f"In {percent(share)} of the steps no op ran: Python of the program, files, waiting, or"
        " other libraries.",
        "See in the flame graph (--side host) which lines it is."
        if sampled
        else "Record with sample=True (tracelens run --sample) to see which lines it is.",
        split,
        split.whole.part("idle").duration_ns,
        {"share": share, "sampled": sampled},
    )


def sync_stalls_cost(data: ProfileData, split: StepsAnswer) -> Iterator[Json]:
    """The host waits for the device, which then has nothing to do."""
    groups = [group for group in sync_stalls(data) if group.op or group.file]
    lost = sum(group.drained_ns for group in groups)
    share = lost / split.whole.duration_ns if split.whole.duration_ns else 0.0
    if share < NOTABLE or not groups:
        return
    worst = groups[0]
    place = f" at {worst.file}:{worst.line}" if worst.file else ""
    yield finding(
        "sync_stall",
        f"{sum(g.count for g in groups)} waits for the device leave it without work for "
        f"{percent(share)} of the steps; the costliest is {worst.op or worst.call}{place}.",
        "Read values off the device less often: keep the loss a tensor and read it every n steps;"
        " avoid .item(), .cpu(), print(tensor), nonzero and boolean indexing in the step; copy with"
        " non_blocking=True from pinned memory.",
        split,
        lost,
        {"groups": [group.as_json() for group in groups[:5]]},
    )


def exposed_communication(data: ProfileData, split: StepsAnswer) -> Iterator[Json]:
    """Communication that computing does not hide."""
    share = split.whole.share("communication")
    answer = communication(data) if share >= NOTABLE else None
    if answer is None:
        return
    part = split.whole.part("communication")
    yield finding(
        "exposed_communication",
        f"Communication that nothing hides takes {percent(share)} of the steps "
        f"({percent(answer.hidden_share)} of all communication is hidden).",
        "Overlap it with computing: larger gradient buckets (bucket_cap_mb), static_graph=True,"
        " gradient_as_bucket_view=True, backward prefetch of FSDP; send less (bf16 gradients,"
        " no_sync for accumulation); look for a straggler.",
        split,
        part.duration_ns,
        {"exposed_ns": part.duration_ns, "total_ns": answer.total_ns},
    )


def exposed_copies(split: StepsAnswer) -> Iterator[Json]:
    """Copies that nothing hides."""
    part, share = split.whole.part("copies"), split.whole.share("copies")
    if share >= NOTABLE:
        yield finding(
            "exposed_copies",
            f"Copies that nothing hides take {percent(share)} of the steps.",
            "Copy batches ahead from pinned memory (pin_memory=True, .to(device,"
            " non_blocking=True)), and keep on the device what is used again.",
            split,
            part.duration_ns,
            {"exposed_ns": part.duration_ns, "total_ns": part.total_ns},
        )


def recompiles(data: ProfileData, split: StepsAnswer) -> Iterator[Json]:
    """Functions traced or compiled again."""
    answer = retraces(data)
    if answer is None or not answer.steps:
        return
    later = [step for step in answer.steps if step.step > (split.steps[0].step or 0)]
    cost = sum(max(step.compile_ns, step.excess_ns) for step in later)
    share = cost / split.whole.duration_ns if split.whole.duration_ns else 0.0
    if not later or share < NOTABLE / 5:
        return
    yield finding(
        "recompile",
        f"Functions are traced or compiled again in {len(later)} steps after the first, which "
        f"costs {duration(cost)} ({percent(share)} of all steps).",
        "Keep shapes and Python arguments the same from step to step: pad batches or drop the last"
        " one (drop_last=True), torch.compile(dynamic=True) or mark_dynamic, an input_signature for"
        " tf.function; pass numbers as tensors.",
        split,
        cost,
        {"steps": [step.as_json() for step in later[:10]]},
        step=later[0].step,
    )


def slow_steps(split: StepsAnswer) -> Iterator[Json]:
    """Steps much longer than the others; the first ones alone are the start of the program."""
    if len(split.steps) < 5 or not split.marked:
        return
    lengths = np.array([step.duration_ns for step in split.steps])
    usual = int(np.median(lengths))
    slow = np.flatnonzero(lengths > OUTLIER * usual)
    if not len(slow):
        return
    starting = slow[slow == np.arange(len(slow))]
    later = slow[len(starting) :]
    told = later if len(later) else starting
    worst = split.steps[told[np.argmax(lengths[told])]]
    part = max(worst.parts, key=lambda part: part.duration_ns)
    evidence = {"steps": [split.steps[at].step for at in told], "median_ns": usual}
    longest = f"step {worst.step} takes {duration(worst.duration_ns)}, mostly {part.name}"
    if len(later):
        yield finding(
            "slow_steps",
            f"{len(later)} of {len(split.steps)} steps take more than twice the median of "
            f"{duration(usual)}; {longest}.",
            "Look at that step: checkpoints, evaluation, compiling, a slow batch, garbage"
            " collection.",
            split,
            int((lengths[later] - usual).sum()),
            evidence,
            step=worst.step,
        )
    else:
        first = "The first step takes" if len(told) == 1 else f"The first {len(told)} steps take"
        yield finding(
            "slow_start",
            f"{first} more than twice the median of {duration(usual)}; {longest}.",
            "It is paid once (imports, workers that start, tracing, compiling, first allocations):"
            " leave it out of what you compare, with --steps or tl.schedule(wait=...).",
            split,
            None,
            {**evidence, "excess_ns": int((lengths[told] - usual).sum())},
            step=worst.step,
        )


def memory_use(data: ProfileData, split: StepsAnswer) -> Iterator[Json]:
    """Fragmentation, and memory that grows."""
    for answer in memory(data):
        if answer.fragmentation is not None and answer.fragmentation > FRAGMENTATION:
            yield finding(
                "fragmentation",
                f"At the peak {percent(answer.fragmentation)} of what the allocator reserved on "
                f"{answer.device} ({size(answer.reserved_bytes)}) was not in use.",
                "Set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, keep sizes of batches the"
                " same, and do not call torch.cuda.empty_cache() in the step.",
                split,
                None,
                {"reserved_bytes": answer.reserved_bytes, "peak_bytes": answer.peak_bytes},
            )
        growth = answer.step_growth_bytes
        if growth is not None and growth > GROWTH_BYTES:
            yield finding(
                "memory_growth",
                f"Memory held on {answer.device} grows by {size(growth)} from step to step.",
                "Something keeps tensors: losses added up without .item() or .detach(), lists of"
                " outputs, a graph retained by create_graph or retain_graph.",
                split,
                None,
                {"step_growth_bytes": growth, "end_bytes": answer.end_bytes},
                severity="warning",
            )
