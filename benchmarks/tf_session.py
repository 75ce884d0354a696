"""What watching a TF1 train step costs, as ratios to the same step unwatched.

    python benchmarks/tf_session.py [-r ROUNDS] [-m guard,ops,...] [--quick]

A graph of about 120 ops that a step runs (three layers, Adam), fed from NumPy. Blocks of runs go
plain, watched, plain, all modes in turn, in one process; a ratio is a watched block over the mean
of the plain blocks beside it, by wall clock and by process CPU time. Peers: RunOptions FULL_TRACE
(times only), and fetching every float tensor by hand (values without statistics).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import tracelens as tl

v1 = tf.compat.v1
WIDTH, BATCH = 512, 128
GOALS = {"guard": 1.15, "ops": 3.3}
WARM_UP = 5

Run = Callable[[], Any]


class Step:
    """The train step, and what of it can be fetched."""

    def __init__(self) -> None:
        v1.set_random_seed(1)
        self.x = v1.placeholder(tf.float32, [None, WIDTH], name="x")
        self.y = v1.placeholder(tf.float32, [None, 1], name="y")
        hidden = self.x
        for number in range(3):
            weights = v1.get_variable(f"w{number}", [WIDTH, WIDTH])
            hidden = tf.nn.relu(hidden @ weights + v1.get_variable(f"b{number}", [WIDTH]))
        out = hidden @ v1.get_variable("out", [WIDTH, 1])
        self.loss = tf.reduce_mean(tf.square(out - self.y), name="loss")
        self.train = v1.train.AdamOptimizer(1e-4).minimize(self.loss)
        ops = v1.get_default_graph().get_operations()
        made = [tensor for op in ops for tensor in op.outputs]
        start = v1.global_variables_initializer()
        initial = {op.name for op in ops if "/Initializer/" in op.name}
        self.floats = [
            t for t in made if t.dtype == tf.float32 and t.op.name not in initial
            if t.op.type not in ("Const", "Placeholder")
        ]  # fmt: skip
        self.session = v1.Session()
        self.session.run(start)
        rng = np.random.default_rng(0)
        self.feeds = {
            self.x: rng.normal(size=(BATCH, WIDTH)).astype(np.float32),
            self.y: rng.normal(size=(BATCH, 1)).astype(np.float32),
        }

    def run(self, **more: Any) -> Any:
        return self.session.run([self.train, self.loss], self.feeds, **more)

    def full_trace(self) -> None:
        options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
        self.run(options=options, run_metadata=v1.RunMetadata())

    def everything(self) -> None:
        self.session.run([self.train, self.loss, self.floats], self.feeds)


@contextlib.contextmanager
def recorded(**settings: Any) -> Iterator[None]:
    with (
        tempfile.TemporaryDirectory() as folder,
        tl.trace(Path(folder) / "t.tltrace", quiet=True, **settings),
    ):
        yield


def block(run: Run, runs: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(runs):
        run()
    return (time.perf_counter() - wall) / runs, (time.process_time() - cpu) / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-r", "--rounds", type=int, default=10)
    parser.add_argument("-n", "--runs", type=int, default=100, help="runs of a block")
    parser.add_argument("-m", "--modes", default="guard,ops,FULL_TRACE,every float fetched")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds, runs = (2, 20) if options.quick else (options.rounds, options.runs)
    v1.disable_eager_execution()
    step = Step()
    modes: dict[str, tuple[Callable[[], Any], Run]] = {
        "guard": (recorded, step.run),
        "ops": (lambda: recorded(capture="ops"), step.run),
        "FULL_TRACE": (contextlib.nullcontext, step.full_trace),
        "every float fetched": (contextlib.nullcontext, step.everything),
    }
    chosen = [mode for mode in options.modes.split(",") if mode]
    ratios: dict[str, list[tuple[float, float]]] = {mode: [] for mode in chosen}
    plain_ms = []
    block(step.run, WARM_UP)
    for _ in range(rounds):
        for mode in chosen:
            before = block(step.run, runs)
            context, run = modes[mode]
            with context():
                block(run, WARM_UP)
                watched = block(run, runs)
            after = block(step.run, runs)
            plain = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
            plain_ms.append(plain[0] * 1e3)
            ratios[mode].append((watched[0] / plain[0], watched[1] / plain[1]))
    print(f"plain step {statistics.median(plain_ms):.2f} ms; medians of {rounds} rounds")
    print(f"{'mode':<22}{'wall':>8}{'cpu':>8}{'goal':>8}")
    for mode, found in ratios.items():
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        goal = f"{GOALS[mode]:.2f}" if mode in GOALS else ""
        print(f"{mode:<22}{wall:>8.2f}{cpu:>8.2f}{goal:>8}")


if __name__ == "__main__":
    main()
