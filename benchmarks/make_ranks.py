"""Write a synthetic run of many ranks, whose answers are known.

    python benchmarks/make_ranks.py OUT.tltrace --ranks 64 --ops 1000000

Each rank's times are on a clock of its own, ``skew_ns(rank)`` away from rank 0's; one rank comes
late to every collective; the first NaN is born on one rank and on the others a step later; one
rank's parameters diverge. `KNOWN` says which.
"""

from __future__ import annotations

import argparse
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tracelens.storage.bulk import BulkShard, Coded, Masked

OPS_PER_STEP = 2_000
BUCKETS = 4
STEP_NS = 100_000_000
KNOWN = {"straggler": 2, "late_ns": 8_000_000, "first_bad": 1, "bad_step": 3, "diverged": 3,
         "diverged_step": 4}  # fmt: skip

_OPS = ("addmm", "gelu", "native_layer_norm", "bmm", "softmax", "add", "mul", "dropout",
        "transpose", "view", "sum", "div", "mm", "t", "copy_", "native_dropout_backward",
        "sqrt", "addcdiv_", "lerp_", "fill_")  # fmt: skip
_PHASES = ("forward", "backward", "optimizer")


def skew_ns(rank: int) -> int:
    """Return how far a rank's clock is ahead of rank 0's."""
    return 0 if rank == 0 else (rank % 7 - 3) * 1_300_000 + rank * 1_001


def write_rank(path: Path, rank: int, ranks: int, ops: int, ops_per_step: int) -> int:
    """Write one rank's shard and return its rows."""
    rng = np.random.default_rng(rank)
    steps = -(-ops // ops_per_step)
    ids = np.arange(ops)
    step, ord_ = ids // ops_per_step, ids % ops_per_step
    ahead = skew_ns(rank)
    with BulkShard(
        path, rank, world_size=ranks, epoch_unix_ns=1_700_000_000_000_000_000, framework="torch",
        host=f"node{rank:02d}", pid=1000 + rank,
    ) as shard:  # fmt: skip
        pitch = STEP_NS * 8 // 10 // ops_per_step
        start = step * STEP_NS + ord_ * pitch + rng.integers(0, max(1, pitch // 3), ops) + ahead
        duration = rng.integers(1, max(2, pitch // 2), ops)
        kind = (ord_ * 7919) % 480  # which of the program's lines: the same in every step
        bad_from = KNOWN["bad_step"] + (rank != KNOWN["first_bad"])
        bad = (step >= bad_from) & (ord_ >= ops_per_step - 3)
        for low in range(0, ops, 1 << 20):
            part = slice(low, low + (1 << 20))
            shard.write("ops", {
                "op_id": ids[part], "step": step[part], "ord": ord_[part],
                "name": Coded(kind[part] % len(_OPS), [f"aten::{name}" for name in _OPS]),
                "module": Coded(kind[part] // 20, [f"layers.{n}" for n in range(24)]),
                "phase": Coded(kind[part] * 3 // 480, _PHASES),
                "file": Coded(np.zeros(len(ids[part])), ["train.py"]),
                "line": 10 + kind[part] // 4, "function": "forward", "tid": 100 + kind[part] % 3,
                "start_ns": start[part], "duration_ns": duration[part],
                "numel": 1024, "nan_count": np.where(bad[part], 3, 0), "inf_count": 0,
                "mean": rng.standard_normal(len(ids[part])).astype(np.float32),
                "l2": rng.random(len(ids[part])).astype(np.float32),
                "flags": np.where(kind[part] == 0, 128, 0),
            })  # fmt: skip
        _collectives(shard, rank, ranks, steps, ahead, rng)
        _fingerprints(shard, rank, steps)
        late = KNOWN["late_ns"] if rank == KNOWN["straggler"] else 0
        for number in range(steps):
            shard.event(
                "step", step=number, start_ns=number * STEP_NS + ahead,
                duration_ns=STEP_NS - 5_000_000 + late // 8 + rank * 100 + number % 7,
                n_ops=ops_per_step, hits=int(3 * (number >= bad_from)),
                scalars={"loss": 2.0 / (1 + number) + rank / 1000},
            )  # fmt: skip
        if bad_from < steps:
            shard.event(
                "finding", rule="nonfinite", step=bad_from, severity="error", rank=rank,
                verdict="found", message="NaN in the loss", first_cause={"op": "aten::sqrt"},
            )  # fmt: skip
        shard.event("note", kind="engine", severity="info", message="made by a script", step=0)
        rows = shard.rows
    return rows


def _collectives(
    shard: BulkShard, rank: int, ranks: int, steps: int, ahead: int, rng: np.random.Generator
) -> None:
    """Every rank is ready at its own moment; all leave together after the last one."""
    count = steps * BUCKETS
    shared = np.random.default_rng(99)
    ready = shared.integers(0, 400_000, (count, ranks))
    ready[:, KNOWN["straggler"]] += KNOWN["late_ns"] if ranks > KNOWN["straggler"] else 0
    at = np.arange(count)
    due = at // BUCKETS * STEP_NS + (at % BUCKETS + 1) * 20_000_000
    transfer = shared.integers(180_000, 320_000, count)
    gone = due + ready.max(axis=1) + transfer + rng.integers(0, 20_000, count)
    entered = due + ready[:, rank]
    shard.write("collectives", {
        "coll_id": at, "step": at // BUCKETS, "seq": at, "comm_group": "0", "name": "allreduce",
        "backend": "gloo", "dtype": "float32", "comm_ranks": ranks, "size_bytes": 4 << 20,
        "tid": 200, "start_ns": entered + ahead, "duration_ns": gone - entered,
    })  # fmt: skip


def _fingerprints(shard: BulkShard, rank: int, steps: int) -> None:
    names = [f"layers.{n}.weight" for n in range(24)]
    step = np.repeat(np.arange(0, steps, 2), len(names))
    code = np.tile(np.arange(len(names)), len(step) // len(names))
    odd = (rank == KNOWN["diverged"]) & (step >= KNOWN["diverged_step"]) & (code >= 5)
    shard.write("fingerprints", {
        "step": step, "name": Coded(code, names), "kind": "parameter", "numel": 1 << 20,
        "checksum": step * 1_000_003 + code + np.where(odd, 17, 0),
        "l2": Masked(1.0 + code + step * 1e-3, np.zeros(len(step), dtype=bool)),
    })  # fmt: skip


def make(
    path: Path, ranks: int, ops: int, *, ops_per_step: int = OPS_PER_STEP, jobs: int = 2
) -> int:
    """Write the run and return its rows.

    Args:
        path: the trace; it must not exist.
        ranks: how many.
        ops: ops of each rank.
        ops_per_step: how many of them make a step.
        jobs: processes that write.
    """
    if jobs == 1:
        return sum(write_rank(path, rank, ranks, ops, ops_per_step) for rank in range(ranks))
    with ProcessPoolExecutor(jobs) as pool:
        work = [
            pool.submit(write_rank, path, rank, ranks, ops, ops_per_step) for rank in range(ranks)
        ]
        return sum(done.result() for done in work)


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--ops", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="replace what is there")
    options = parser.parse_args()
    if options.force and (options.out / "manifest.json").exists():
        shutil.rmtree(options.out)
    started = time.perf_counter()
    rows = make(options.out, options.ranks, options.ops, jobs=options.jobs)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{rows:,} rows, {size / 1e6:,.0f} MB, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
