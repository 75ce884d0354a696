"""What recording every op of a TensorFlow training loop costs, as ratios to the plain loop.

    python benchmarks/tf_levels.py [-w mlp,gpt,conv] [-r ROUNDS]

Four ways: probes in the graph (engine ``native``), the same function run op by op (engine
``python``), the eager loop at level ops and at guard. Blocks of steps run plain, watched, plain,
all ways in turn; a ratio is a watched block's median step over the mean of the plain blocks beside
it, in process CPU time (to be believed on a shared machine) and wall-clock time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from tf_workloads import Workload, make

import tracelens as tl


class Level(NamedTuple):
    """A way of recording: how the loop runs, what is asked for, what is hoped for."""

    name: str
    way: str
    settings: dict[str, str]
    goals: dict[str, float]


_GOALS = {"mlp": 1.9, "gpt": 2.0, "conv": 2.0}
LEVELS = (
    Level("ops, in graph", "function", {"capture": "ops", "engine": "native"}, _GOALS),
    Level(
        "ops, op by op", "function", {"capture": "ops", "engine": "python"},
        {"mlp": 4.0, "gpt": 2.5, "conv": 2.5},
    ),
    Level("ops, eager", "eager", {"capture": "ops"}, {"mlp": 1.25, "gpt": 1.75}),
    Level("guard, eager", "eager", {"capture": "guard"}, {}),
)  # fmt: skip


def block(work: Workload, steps: int) -> tuple[float, float]:
    """Return the median CPU and wall seconds of a step."""
    cpu, wall = [], []
    for _ in range(steps):
        c, w = time.process_time(), time.perf_counter()
        work.run(1)
        cpu.append(time.process_time() - c)
        wall.append(time.perf_counter() - w)
    return statistics.median(cpu), statistics.median(wall)


def watched(work: Workload, level: Level, steps: int) -> tuple[float, float]:
    """Return the same while the loop is recorded."""
    folder = Path(tempfile.mkdtemp(prefix="tracelens-levels-"))
    try:
        with tl.trace(folder / "run.tltrace", quiet=True, **level.settings):  # type: ignore[arg-type]
            work.run(3)
            return block(work, steps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-w", "--workloads", default="mlp,gpt,conv")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(f"tensorflow {tf.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':6} {'level':16} {'CPU':>6} {'wall':>6}  goal")
    for name in options.workloads.split(","):
        loops = {way: make(name, way) for way in dict.fromkeys(level.way for level in LEVELS)}
        for work in loops.values():
            work.run(3)
        ratios: dict[str, list[tuple[float, float]]] = {level.name: [] for level in LEVELS}
        for _ in range(options.rounds):
            for level in LEVELS:
                work = loops[level.way]
                steps = max(2, work.block_steps // 2)
                before = block(work, steps)
                during = watched(work, level, steps)
                after = block(work, steps)
                ratios[level.name].append(
                    tuple(2 * d / (b + a) for d, b, a in zip(during, before, after, strict=True))  # type: ignore[arg-type]
                )
        for level in LEVELS:
            cpu = statistics.median(ratio for ratio, _ in ratios[level.name])
            wall = statistics.median(ratio for _, ratio in ratios[level.name])
            goal = level.goals.get(name)
            print(f"{name:6} {level.name:16} {cpu:6.2f} {wall:6.2f}  {goal or ''}", flush=True)


if __name__ == "__main__":
    main()
