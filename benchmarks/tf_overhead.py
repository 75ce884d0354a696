"""What watching a TensorFlow training loop costs, as ratios to the same loop unwatched.

    python benchmarks/tf_overhead.py [-w mlp,gpt,conv] [--ways function,fit,...] [-m guard,...]
                                     [-r ROUNDS] [--quick]

Blocks of steps run plain, watched, plain, watched in another mode, plain and so on, in one process;
a ratio is a watched block over the mean of the plain blocks beside it, of process CPU time and of
wall-clock time, which is held against the goal. Peers put their ops into a function when it is
traced, so each has a loop of its own. ``=`` says that weights came out bit for bit as without.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from tf_workloads import WAYS, Workload, make

import tracelens as tl

SETTLE_S = 0.5
SAME_STEPS = 4
"""Steps after which the weights of a plain and of a watched loop are compared."""

Watch = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tracelens-overhead-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def session(**options: object) -> Watch:
    """A mode that records into a fresh trace."""

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        with scratch() as folder, tl.trace(folder / "run.tltrace", quiet=True, **options):  # type: ignore[arg-type]
            yield

    return watched


@contextlib.contextmanager
def check_numerics() -> Iterator[None]:
    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


def tfdbg(level: str) -> Watch:
    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        with scratch() as folder:
            tf.debugging.experimental.enable_dump_debug_info(str(folder), tensor_debug_mode=level)
            try:
                yield
            finally:
                tf.debugging.experimental.disable_dump_debug_info()

    return watched


OURS: dict[str, Watch] = {
    "guard": session(),
    "minimum": session(engine="sentinel"),
    "ops": session(capture="ops"),
}
PEERS: dict[str, Watch] = {
    "check_numerics": check_numerics,
    "tfdbg CURT_HEALTH": tfdbg("CURT_HEALTH"),
}
PEER_WAYS = ("function", "fit", "jit")

GOALS: dict[tuple[str, str], dict[str, float]] = {
    ("mlp", "function"): {"guard": 1.10, "minimum": 1.03, "ops": 1.9},
    ("gpt", "function"): {"guard": 1.05, "minimum": 1.02, "ops": 2.0},
    ("conv", "function"): {"guard": 1.05, "minimum": 1.02, "ops": 2.0},
    ("mlp", "fit"): {"guard": 1.10, "minimum": 1.03, "ops": 1.9},
    ("gpt", "fit"): {"guard": 1.05, "minimum": 1.02, "ops": 2.0},
    ("conv", "fit"): {"guard": 1.05, "minimum": 1.02, "ops": 2.0},
    ("gpt", "jit"): {"guard": 1.15},
    ("gpt", "fit-jit"): {"guard": 1.15},
    ("mlp", "session"): {"guard": 1.15},
    ("mlp", "eager"): {"ops": 1.25},
    ("gpt", "eager"): {"ops": 1.75},
}


def block(work: Workload) -> tuple[float, float]:
    """Return the CPU and wall seconds of a step."""
    cpu, wall = time.process_time(), time.perf_counter()
    work.run(work.block_steps)
    steps = work.block_steps
    return (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps


def settle(work: Workload) -> None:
    until = time.monotonic() + SETTLE_S
    work.run(1)
    while time.monotonic() < until:
        work.run(1 if work.block_steps < 10 else 10)


def equal(name: str, way: str, watch: Watch) -> bool:
    """Tell whether a watched loop reaches the weights of a plain one, bit for bit."""

    def reached(around: contextlib.AbstractContextManager[None]) -> list[bytes]:
        work = make(name, way)
        with around:
            work.run(SAME_STEPS)
        return [weight.tobytes() for weight in work.weights()]

    return reached(contextlib.nullcontext()) == reached(watch())


def measure(name: str, way: str, modes: list[str], rounds: int, *, compare: bool) -> None:
    """Print the table of a workload run in one way."""
    work = make(name, way)
    settle(work)
    loops = dict.fromkeys(modes, work)
    failed: dict[str, str] = {}
    for mode in [mode for mode in modes if mode in PEERS]:
        loops[mode] = make(name, way)
        try:
            with PEERS[mode]():
                loops[mode].run(1)
        except Exception as error:
            failed[mode] = type(error).__name__
    cpu: dict[str, list[float]] = {mode: [] for mode in modes}
    wall: dict[str, list[float]] = {mode: [] for mode in modes}
    plain_ms = []
    after = block(work)
    for _ in range(rounds):
        for mode in [mode for mode in modes if mode not in failed]:
            before = after
            with (OURS | PEERS)[mode]():
                settle(loops[mode])
                during = block(loops[mode])
            after = block(work)
            plain_ms.append(after[1] * 1e3)
            cpu[mode].append(2 * during[0] / (before[0] + after[0]))
            wall[mode].append(2 * during[1] / (before[1] + after[1]))
    plain = f"{statistics.median(plain_ms):.1f}" if plain_ms else "?"
    print(f"\n{name} {way}: plain step {plain} ms, {rounds} rounds")
    print(f"  {'mode':20} {'CPU':>6} {'wall':>6}  {'goal':>5}")
    for mode in modes:
        if mode in failed:
            print(f"  {mode:20} fails: {failed[mode]}", flush=True)
            continue
        goal = GOALS.get((name, way), {}).get(mode)
        ratios = [statistics.median(figures[mode]) for figures in (cpu, wall)]
        verdict = ""
        if goal is not None:
            verdict = f"{goal:5.2f}  {'ok' if ratios[1] <= goal else 'MISSED'}"
        same = ""
        if compare and mode in OURS:
            same = "  =" if equal(name, way, OURS[mode]) else "  differs"
        print(f"  {mode:20} {ratios[0]:6.3f} {ratios[1]:6.3f}  {verdict}{same}", flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-w", "--workloads", default=",".join(WAYS))
    parser.add_argument("--ways", default="function,fit,jit,fit-jit,session,eager")
    parser.add_argument("-m", "--modes", default=",".join([*OURS, *PEERS]))
    parser.add_argument("-r", "--rounds", type=int, help="default: 5 for mlp, 2 for the others")
    parser.add_argument("--compare", action="store_true", help="compare weights bit for bit too")
    parser.add_argument("--quick", action="store_true", help="mlp in a function, under a minute")
    options = parser.parse_args()
    if options.quick:
        options.workloads, options.ways, options.rounds = "mlp", "function", 2
        options.compare = True
    for name in options.workloads.split(","):
        for way in [way for way in options.ways.split(",") if way in WAYS[name]]:
            modes = [mode for mode in options.modes.split(",") if mode in OURS | PEERS]
            if way not in PEER_WAYS:
                modes = [mode for mode in modes if mode in OURS]
            rounds = options.rounds or (5 if name == "mlp" else 2)
            measure(name, way, modes, rounds, compare=options.compare)


if __name__ == "__main__":
    main()
