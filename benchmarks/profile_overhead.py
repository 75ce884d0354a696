"""What profile=True costs, beside torch.profiler alone with the same activities.

    python benchmarks/profile_overhead.py [-w mlp,gpt] [-r ROUNDS] [-c guard,ops]

Blocks of steps run plain, under ``torch.profiler`` (CPU, shapes, memory), under TraceLens, all in
turn, in one process with one thread. A ratio is the median over the rounds of the blocks' median
steps (process CPU time). What happens at the end of a window is shown apart: for torch.profiler
stopping and building its list of events, for TraceLens stopping, reading, matching and writing.
First every mode must give bit-identical losses, weights and random states.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from workloads import WORKLOADS, Workload

import tracelens as tl

STEPS = {"mlp": 40, "gpt": 8, "conv": 6}

Block = tuple[float, float]


def plain(work: Workload, steps: int) -> Block:
    """Return the median step and the end's time, both CPU seconds."""
    return statistics.median(timed(work.step) for _ in range(steps)), 0.0


def torch_alone(work: Workload, steps: int) -> Block:
    """The same under torch.profiler."""
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        record_shapes=True,
        profile_memory=True,
    )
    profiler.start()

    def step() -> None:
        work.step()
        profiler.step()

    each = [timed(step) for _ in range(steps)]

    def end() -> None:
        profiler.stop()
        profiler.events()

    return statistics.median(each), timed(end)


def with_tracelens(capture: str) -> Callable[[Workload, int], Block]:
    """Return the mode of a capture level."""

    def run(work: Workload, steps: int) -> Block:
        folder = Path(tempfile.mkdtemp(prefix="tracelens-profile-"))
        schedule = tl.schedule(active=steps, repeat=1)
        try:
            with tl.trace(
                folder / "t", capture=capture, profile=True, schedule=schedule, quiet=True
            ) as session:

                def step() -> None:
                    work.step()
                    session.step()

                each = [timed(step) for _ in range(steps)]
            # The last step's mark ends the stretch.
            return statistics.median(each[:-1]), each[-1] - statistics.median(each)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run


def timed(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def state_after(name: str, run: Callable[[Workload, int], Block]) -> list[torch.Tensor]:
    """Return everything that a few steps change."""
    work = WORKLOADS[name]()
    run(work, 3)
    return [*(p.detach().clone() for p in work.model.parameters()), torch.get_rng_state()]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-w", "--workloads", default="mlp,gpt")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-c", "--captures", default="guard,ops")
    options = parser.parse_args()
    torch.set_num_threads(1)
    modes: dict[str, Callable[[Workload, int], Block]] = {
        "plain": plain,
        "torch.profiler": torch_alone,
    }
    for capture in options.captures.split(","):
        modes[f"tracelens {capture}"] = with_tracelens(capture)
    print("| workload | mode | step ms | to plain | to torch.profiler | end of window ms |")
    print("|---|---|---|---|---|---|")
    for name in options.workloads.split(","):
        expected = state_after(name, plain)
        for mode, run in modes.items():
            same = all(map(torch.equal, expected, state_after(name, run)))
            if not same:
                raise SystemExit(f"{mode} changes what {name} computes")
        work = WORKLOADS[name]()
        blocks: dict[str, list[Block]] = {mode: [] for mode in modes}
        for _ in range(options.rounds):
            for mode, run in modes.items():
                blocks[mode].append(run(work, STEPS.get(name, 6)))
        for mode in modes:
            ratios = [
                [ours[0] / other[0] for ours, other in zip(blocks[mode], blocks[base], strict=True)]
                for base in ("plain", "torch.profiler")
            ]
            step_ms = 1e3 * statistics.median(block[0] for block in blocks[mode])
            end_ms = 1e3 * statistics.median(block[1] for block in blocks[mode])
            to_plain, to_torch = (statistics.median(each) for each in ratios)
            print(
                f"| {name} | {mode} | {step_ms:.2f} | {to_plain:.3f} | {to_torch:.3f} "
                f"| {end_ms:.0f} |"
            )


if __name__ == "__main__":
    main()
