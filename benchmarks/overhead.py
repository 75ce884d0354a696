"""What watching a training loop costs, as ratios to the same loop unwatched.

    python benchmarks/overhead.py [-w mlp,gpt,conv] [-m guard-native,...] [-r ROUNDS]

Blocks of steps run plain, watched, plain (A-B-A), all modes in turn, in one process with one
thread; a ratio is a watched block's median step over the mean of the plain blocks beside it.
Process CPU time is believed on a shared machine, wall-clock time is shown beside it. First every
mode must give bit-identical losses, weights and random states.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from workloads import WORKLOADS, Workload

import tracelens as tl
from tracelens import stats

SETTLE_S = 0.6

Step = Callable[[], torch.Tensor]
Wrap = Callable[[Workload], contextlib.AbstractContextManager[Step]]


@contextlib.contextmanager
def plain(work: Workload) -> Iterator[Step]:
    yield work.step


def session(**options: object) -> Wrap:
    """A mode that records into a fresh trace."""

    @contextlib.contextmanager
    def watched(work: Workload) -> Iterator[Step]:
        folder = Path(tempfile.mkdtemp(prefix="tracelens-overhead-"))
        try:
            with tl.trace(folder / "run.tltrace", quiet=True, **options):  # type: ignore[arg-type]
                yield work.step
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return watched


@contextlib.contextmanager
def without_extension(work: Workload) -> Iterator[Step]:
    native, stats.native, stats.HAS_NATIVE = stats.native, None, False  # type: ignore[misc]
    try:
        with session(engine="python")(work) as step:
            yield step
    finally:
        stats.native, stats.HAS_NATIVE = native, native is not None  # type: ignore[misc]


@contextlib.contextmanager
def off(work: Workload) -> Iterator[Step]:
    before = os.environ.get("TRACELENS")
    os.environ["TRACELENS"] = "0"
    try:
        yield tl.trace(work.step)
    finally:
        os.environ.pop("TRACELENS")
        if before is not None:
            os.environ["TRACELENS"] = before


@contextlib.contextmanager
def detect_anomaly(work: Workload) -> Iterator[Step]:
    with torch.autograd.set_detect_anomaly(True):
        yield work.step


MODES: dict[str, Wrap] = {
    "plain": plain,
    "off": off,
    "guard-native": session(engine="native"),
    "guard-python": session(engine="python"),
    "guard-python-no-abi3": without_extension,
    "ops-native": session(engine="native", capture="ops"),
    "sentinel": session(engine="sentinel"),
    "detect_anomaly": detect_anomaly,
}


def fingerprint(make: Callable[[], Workload], wrap: Wrap, steps: int) -> tuple[object, ...]:
    """Return losses, weights and random states after some steps, as bytes."""
    work = make()
    torch.manual_seed(1)
    with wrap(work) as step:
        losses = [step().numpy().tobytes() for _ in range(steps)]
        random = torch.get_rng_state().numpy().tobytes()
    weights = [p.detach().numpy().tobytes() for p in work.model.state_dict().values()]
    return losses, weights, random


def block(step: Step, steps: int) -> tuple[float, float]:
    """Return the median CPU and wall seconds of a step."""
    cpu, wall = [], []
    for _ in range(steps):
        c, w = time.process_time(), time.perf_counter()
        step()
        cpu.append(time.process_time() - c)
        wall.append(time.perf_counter() - w)
    return statistics.median(cpu), statistics.median(wall)


def measure(name: str, modes: list[str], rounds: int) -> None:
    """Print a workload's table."""
    work = WORKLOADS[name]()
    for _ in range(2 * work.block_steps):
        work.step()
    cpu: dict[str, list[float]] = {mode: [] for mode in modes}
    wall: dict[str, list[float]] = {mode: [] for mode in modes}
    plain_ms = []
    for _ in range(rounds):
        for mode in modes:
            before = block(work.step, work.block_steps)
            with MODES[mode](work) as step:
                # A recording under way: sites are named, the ring's pages are warm, the helper
                # process has started and sleeps.
                until = time.monotonic() + SETTLE_S
                while time.monotonic() < until:
                    step()
                during = block(step, work.block_steps)
            after = block(work.step, work.block_steps)
            plain_ms += [before[0] * 1e3, after[0] * 1e3]
            cpu[mode].append(2 * during[0] / (before[0] + after[0]))
            wall[mode].append(2 * during[1] / (before[1] + after[1]))
    print(f"\n{name}: plain step {statistics.median(plain_ms):.1f} ms of CPU, {rounds} rounds")
    print(f"  {'mode':22} {'CPU':>6}  {'quartiles':>13}  {'wall':>6}")
    for mode in modes:
        low, middle, high = quartiles(cpu[mode])
        print(
            f"  {mode:22} {middle:6.3f}  [{low:5.3f} {high:5.3f}]  "
            f"{statistics.median(wall[mode]):6.3f}",
            flush=True,
        )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-w", "--workloads", default="mlp,gpt,conv")
    parser.add_argument("-m", "--modes", default=",".join(MODES))
    parser.add_argument("-r", "--rounds", type=int, default=9)
    parser.add_argument("--no-identity", action="store_true", help="skip the bit comparison")
    options = parser.parse_args()
    names, modes = options.workloads.split(","), options.modes.split(",")
    unknown = [n for n in names if n not in WORKLOADS] + [m for m in modes if m not in MODES]
    if unknown:
        parser.error(f"unknown workload or mode: {', '.join(unknown)}")
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, extension {'yes' if stats.HAS_NATIVE else 'no'}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    different = []
    for name in names:
        if not options.no_identity:
            steps = 5 if name == "mlp" else 2
            expected = fingerprint(WORKLOADS[name], plain, steps)
            different += [
                f"{name} {mode}"
                for mode in modes
                if fingerprint(WORKLOADS[name], MODES[mode], steps) != expected
            ]
        measure(name, modes, options.rounds)
    if different:
        print(f"NOT bit-identical: {', '.join(different)}")
        return 1
    if not options.no_identity:
        print("\nlosses, weights and random states are bit-identical in every mode")
    return 0


if __name__ == "__main__":
    sys.exit(main())
