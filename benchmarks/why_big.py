"""How long `tracelens why` takes on a trace of ten million ops, and how much memory.

The trace is that of a run without stored findings (killed before it could explain its sinks), so
that `why` has to walk: a NaN is born late, and everything after it is NaN as well. A second trace
has the same op masked away, the worst case for a verdict: no sink tells where to look.

    python benchmarks/why_big.py [--ops 10000000] [--dir /tmp]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.events import OpFlag, Phase, RecordKind, Role
from tracelens.storage.encode import Encoder
from tracelens.storage.eventlog import EventRows
from tracelens.storage.format import RECORD
from tracelens.storage.manifest import (
    SHARDS_DIR,
    ShardState,
    new_manifest,
    write_manifest,
    write_shard,
)
from tracelens.storage.segments import SegmentStore

STEP_OPS = 1000
FORWARD, BACKWARD = 400, 400
BAD_OP = 200
"""The place in its step of the op that makes the NaN."""
STEPS_BEFORE_END = 1000
GOAL_S, GOAL_BYTES = 2.0, 500e6
ROUNDS = 5

SITES = {
    number: (
        "site",
        {
            "op": f"aten::{'log' if number == BAD_OP + 1 else 'mul'}",
            "module": f"layers.{number % 48}",
            "file": "train.py",
            "line": number,
            "function": "step",
            "code": f"h = f{number}(h)",
        },
    )
    for number in range(1, STEP_OPS + 1)
}
TENSOR_ID = STEP_OPS + 1
STRINGS = {**SITES, TENSOR_ID: ("tensor", ["float32", [64, 256], "cpu"])}


def step_pattern() -> NDArray[np.void]:
    """Return one step's records with ids from 0: a chain forward, back, and the updates."""
    place = np.arange(STEP_OPS)
    rows = np.zeros(STEP_OPS, RECORD)
    for name in ("parent_id", "fwd_op_id", "duration_ns", "zero", "in_ids"):
        rows[name] = -1
    rows["op_id"] = place
    rows["site_id"] = place + 1
    backward = (place >= FORWARD) & (place < FORWARD + BACKWARD)
    optimizer = place >= FORWARD + BACKWARD
    rows["phase"] = np.select(
        [backward, optimizer], [Phase.BACKWARD, Phase.OPTIMIZER], Phase.FORWARD
    )
    rows["flags"] = np.where(optimizer, OpFlag.CHECKED | OpFlag.INPLACE, OpFlag.CHECKED)
    rows["fwd_op_id"] = np.where(backward, 2 * FORWARD - 1 - place, -1)
    # Relative to the step: forward reads the op before and a parameter of the step before.
    previous = place - 1
    rows["in_ids"][:, 0] = np.where(optimizer, place - STEP_OPS, previous)
    rows["in_ids"][:, 1] = np.where(
        optimizer,
        place - STEP_OPS // 5,
        np.where(backward, 2 * FORWARD - 1 - place, FORWARD + BACKWARD + place // 2 - STEP_OPS),
    )
    rows["n_in"], rows["n_out"], rows["stat_level"] = 2, 1, 1
    rows["numel"] = 64 * 256
    rows["seq"] = 1
    return rows


def batch(
    pattern: NDArray[np.void], first_step: int, steps: int, bad_from: int, *, mask: bool
) -> NDArray[np.void]:
    """Return the records of some steps; from ``bad_from`` on, what follows the bad op is NaN."""
    rows = np.tile(pattern, steps)
    step = np.repeat(np.arange(first_step, first_step + steps), STEP_OPS)
    base = step * STEP_OPS
    place = rows["op_id"].copy()
    rows["op_id"] += base
    rows["step"] = step
    rows["start_ns"] = rows["op_id"] * 1000
    rows["fwd_op_id"] = np.where(rows["fwd_op_id"] >= 0, rows["fwd_op_id"] + base, -1)
    ids = rows["in_ids"][:, :2] + base[:, None]
    rows["in_ids"][:, :2] = np.where(ids >= 0, ids * 16, -1)
    rows["value_id"] = rows["op_id"] * 16
    bad = (place == BAD_OP) & (step >= bad_from)
    if not mask:
        bad = (step > bad_from) | ((step == bad_from) & (place >= BAD_OP))
    rows["flags"] |= np.where(bad, OpFlag.HIT, 0).astype(np.uint16)
    rows["nan"] = np.where(bad, 12, 0)
    detailed = rows[bad & (step < bad_from + 8)]
    if not len(detailed):
        return rows
    inputs, outputs = detailed.copy(), detailed.copy()
    for stats, role in ((inputs, Role.INPUT), (outputs, Role.OUTPUT)):
        stats["kind"], stats["layout_id"], stats["flags"] = RecordKind.STAT, TENSOR_ID, 0
        stats["n_in"], stats["n_out"], stats["vmin"], stats["vmax"] = role, 0, -0.5, 3.0
        stats["in_ids"], stats["stat_level"] = -1, 2
    first = detailed["op_id"] == bad_from * STEP_OPS + BAD_OP
    inputs["nan"] = np.where(first | mask, 0, 12)
    inputs["value_id"] = detailed["in_ids"][:, 0]
    outputs["in_ids"][:, 0] = 17
    return np.concatenate([rows, inputs, outputs])


def sink(step: int) -> dict[str, Any]:
    """Return the event of a gradient that was seen to be bad at the end of a backward pass."""
    op_id = step * STEP_OPS + FORWARD + BACKWARD - 1
    return {
        "t": "sink",
        "sink": "gradient",
        "name": "layers.0.weight",
        "step": step,
        "op_id": op_id,
        "value_id": op_id * 16,
        "dtype": "float32",
        "shape": [64, 256],
        "stats": {"numel": 64 * 256, "nan": 12, "posinf": 0, "neginf": 0},
        "t_ns": op_id,
    }


def build(path: Path, n_ops: int, *, mask: bool) -> None:
    """Write the trace."""
    (path / SHARDS_DIR).mkdir(parents=True)
    write_manifest(path, new_manifest(1_700_000_000 * 10**9, 1, "benchmark"))
    shard = "r00000-0"
    state = ShardState(shard, 0, 0, "host", 0, "torch", "stream", state="closed")
    encoder, store = Encoder(0, lambda: STRINGS), SegmentStore(path, shard)
    steps = n_ops // STEP_OPS
    bad_from = max(steps - STEPS_BEFORE_END, 1)
    pattern = step_pattern()
    per_batch = 256
    for first in range(0, steps, per_batch):
        rows = batch(pattern, first, min(per_batch, steps - first), bad_from, mask=mask)
        for name, table in encoder.tables(rows).items():
            low, high = table["op_id"][0].as_py(), table["op_id"][-1].as_py()
            state.segments.append(store.write(name, table, low, high))
    events = EventRows(0)
    for step in range(steps):
        events.add({"t": "step", "step": step, "start_ns": step, "n_ops": STEP_OPS, "scalars": {}})
    if not mask:
        for step in (bad_from, bad_from + 1):
            events.add(sink(step))
    for name, table in events.tables().items():
        state.segments.append(store.write(name, table, 0, events.next_id))
    state.records = n_ops
    write_shard(path, state)


def ask(path: Path) -> tuple[float, int, str]:
    """Run `tracelens why` in a fresh process; return seconds, peak bytes and the first line."""
    program = (
        "import resource, sys, time\n"
        "started = time.perf_counter()\n"
        "from tracelens.cli import main\n"
        f"main(['why', {str(path)!r}])\n"
        "seconds = time.perf_counter() - started\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(seconds, peak * 1024, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    seconds, peak = done.stderr.strip().splitlines()[-1].split()
    return float(seconds), int(peak), done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", type=int, default=10_000_000)
    parser.add_argument("--dir", default=None, help="where the trace is written (300 MB)")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="why_big-", dir=options.dir))
    try:
        for mask in (False, True):
            path = home / f"mask-{mask}.tltrace"
            started = time.perf_counter()
            build(path, options.ops, mask=mask)
            built = time.perf_counter() - started
            size = sum(file.stat().st_size for file in path.rglob("*.parquet"))
            kind = "masked" if mask else "non-finite"
            print(f"\n{kind}: {options.ops} ops, {size / 1e6:.0f} MB, written in {built:.0f} s")
            answers = [ask(path) for _ in range(ROUNDS)]
            seconds = statistics.median(answer[0] for answer in answers)
            peak = max(answer[1] for answer in answers)
            print(answers[0][2])
            print(f"why: median {seconds:.2f} s (goal {GOAL_S}), ", end="")
            print(f"peak {peak / 1e6:.0f} MB (goal {GOAL_BYTES / 1e6:.0f})")
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
