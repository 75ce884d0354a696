"""How long each analysis of a profile takes on a large synthetic trace.

python benchmarks/analyses.py [--events 4000000] [--keep DIR]

The trace is a training run: for each step a wait for data, ops nested three deep, a launch and a
kernel for every third op, Python frames around them, collectives, a wait for the device, and
allocations. Each analysis gets a profile that has read nothing yet, so that reading is in its time.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tracelens.analysis.profile.comm import communication
from tracelens.analysis.profile.critical import critical_path
from tracelens.analysis.profile.data import ProfileData, load_profile
from tracelens.analysis.profile.device import device_totals
from tracelens.analysis.profile.devices import limits_of
from tracelens.analysis.profile.findings import profile_findings
from tracelens.analysis.profile.flame import device_flame, host_flame
from tracelens.analysis.profile.idle import idle
from tracelens.analysis.profile.kernels import top_kernels, top_ops
from tracelens.analysis.profile.launch import launches, sync_stalls
from tracelens.analysis.profile.memory import memory
from tracelens.analysis.profile.optree import op_tree
from tracelens.analysis.profile.overview import profile_overview
from tracelens.analysis.profile.retrace import retraces
from tracelens.analysis.profile.roofline import roofline
from tracelens.analysis.profile.steps import split_steps
from tracelens.events import OpFlag
from tracelens.storage.bulk import BulkShard, Coded, Masked
from tracelens.storage.reader import open_trace

OPS_A_STEP = 2400
PHASES = ("forward", "backward", "optimizer")
STEP_NS = 60_000_000

ANALYSES: dict[str, Callable[[ProfileData], Any]] = {
    "device totals": device_totals,
    "step split": split_steps,
    "idle": idle,
    "top kernels": top_kernels,
    "top ops by name": top_ops,
    "top ops by shape": lambda data: top_ops(data, by="shape"),
    "top ops by module": lambda data: top_ops(data, by="module"),
    "top ops by line": lambda data: top_ops(data, by="line"),
    "op tree": op_tree,
    "launches": launches,
    "sync stalls": sync_stalls,
    "memory": memory,
    "communication": communication,
    "retraces": retraces,
    "roofline": lambda data: roofline(data, limits_of("H100")),
    "critical path": critical_path,
    "host flame": host_flame,
    "device flame": device_flame,
    "findings (all)": profile_findings,
    "overview (all)": profile_overview,
}


def make(path: Path, events: int) -> int:
    """Write the trace; return how many events it has."""
    # Of 3 ops one has a launch and a kernel, and each op a Python frame around it.
    steps = max(events // (OPS_A_STEP * 8 // 3 + OPS_A_STEP // 6), 1)
    n = steps * OPS_A_STEP
    at = np.arange(n)
    step, number, depth = at // OPS_A_STEP, at % OPS_A_STEP, at % 3
    slot = STEP_NS * 8 // 10 // OPS_A_STEP
    begin = step * STEP_NS + STEP_NS // 10 + (number - depth) * slot
    start, length = begin + depth * slot // 8, slot * 3 - depth * slot // 2
    phase = np.minimum(number * 3 // OPS_A_STEP, 2)
    names = [f"aten::op{i}" for i in range(40)] + ["aten::mm", "aten::add", "aten::linear"]
    shapes = ["[[1024, 512], [512, 2048]]", "[[64, 128], [64, 128]]"]
    dtypes = '["c10::BFloat16", "c10::BFloat16"]'
    modules = [f"layers.{i}.mlp" for i in range(60)]
    kernels = [f"kernel_{i}" for i in range(200)] + ["ncclDevKernel_AllReduce"]
    rng = np.random.default_rng(0)
    last = np.flatnonzero(depth == 2)
    k = len(last)
    with BulkShard(path, epoch_unix_ns=0) as shard:
        code = np.where(depth == 2, 40 + at // 3 % 2, np.where(depth == 1, at // 3 % 40, 42))
        shard.write("ops", {
            "op_id": at + 1, "step": step, "ord": number,
            "parent_id": Masked(at, depth == 0), "name": Coded(code, names),
            "phase": Coded(phase, PHASES), "module": Coded(number // 40, modules),
            "file": Coded(np.zeros(n), ["train.py"]), "line": number // 10 + 1,
            "start_ns": start, "duration_ns": length, "flags": int(OpFlag.PROFILED),
            "in_shapes": Coded(at // 3 % 2, shapes), "in_dtypes": Coded(np.zeros(n), [dtypes]),
        })  # fmt: skip
        call = start[last] + slot // 4
        kernel_start = np.maximum.accumulate(call + rng.integers(4_000, 40_000, k))
        lengths = np.minimum(
            rng.integers(2_000, slot * 3, k), np.diff(kernel_start, append=1 << 60)
        )
        comm = np.arange(k) % 100 == 99
        shard.write("kernels", {
            "kern_id": np.arange(k) + 1, "step": step[last], "op_id": last + 1,
            "corr_id": np.arange(k), "kind": Coded(np.where(comm, 1, 0), ["kernel", "comm"]),
            "name": Coded(np.where(comm, 200, rng.integers(0, 200, k)), kernels),
            "device": 0, "stream": np.where(comm, 20, 7), "start_ns": kernel_start,
            "duration_ns": lengths, "span_id": n + np.arange(k) + 1,
            "size_bytes": Masked(np.full(k, 1 << 24), ~comm),
            "comm_ranks": Masked(np.full(k, 8), ~comm),
        })  # fmt: skip
        shard.write("spans", {
            "span_id": at + 1, "step": step, "tid": 1,
            "kind": Coded(np.where(number == 0, 1, 0), ["python", "data"]),
            "name": Coded(number // 3 % 500, [f"model.py({i}): forward" for i in range(500)]),
            "start_ns": np.where(number == 0, step * STEP_NS, start - 50),
            "duration_ns": np.where(number == 0, STEP_NS // 10, length + 20),
            "parent_id": Masked(at, depth == 0),
        })  # fmt: skip
        sync = np.arange(k) % 400 == 399
        shard.write("spans", {
            "span_id": n + np.arange(k) + 1, "step": step[last],
            "kind": Coded(np.zeros(k), ["runtime"]),
            "name": Coded(np.where(sync, 1, 0), ["cudaLaunchKernel", "cudaStreamSynchronize"]),
            "tid": 1, "start_ns": call, "duration_ns": np.where(sync, 60_000, 4_000),
            "op_id": last + 1, "corr_id": np.arange(k),
        })  # fmt: skip
        m = n // 6
        half = m // 2
        size = np.append(rng.integers(1 << 10, 1 << 20, half), [])
        times = np.sort(rng.integers(0, steps * STEP_NS, m))
        shard.write("memory", {
            "step": times // STEP_NS, "t_ns": times, "device": Coded(np.zeros(m), ["cuda:0"]),
            "size_bytes": np.stack([size, -size], axis=1).reshape(-1).astype(np.int64),
            "address": np.repeat(np.arange(half) % 1000, 2), "op_id": np.arange(m) + 1,
        })  # fmt: skip
        for i in range(steps):
            shard.event("step", step=i, start_ns=i * STEP_NS, duration_ns=STEP_NS)
    return 2 * n + 2 * k + m


def timed(analysis: Callable[[ProfileData], Any], data: ProfileData) -> tuple[float, float]:
    """Return wall and CPU seconds of one analysis."""
    wall, cpu = time.perf_counter(), time.process_time()
    analysis(data)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--keep", type=Path, help="make the trace here, or use the one there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = options.keep or Path(directory) / "run.tltrace"
        if not path.exists():
            print(f"{make(path, options.events)} events in {path}")
        slowest = 0.0
        print(f"{'':20} {'wall s':>7} {'CPU s':>7}   again: {'wall s':>7} {'CPU s':>7}")
        for name, analysis in ANALYSES.items():
            with open_trace(path) as reader:
                data = load_profile(reader)
                cold, warm = timed(analysis, data), timed(analysis, data)
            slowest = max(slowest, 0 if "(all)" in name else cold[0])
            print(f"{name:20} {cold[0]:7.3f} {cold[1]:7.3f}          {warm[0]:7.3f} {warm[1]:7.3f}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"slowest single analysis {slowest:.3f} s, peak memory {peak:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
