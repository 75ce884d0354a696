"""What sample=True costs, and how many samples carry the right step.

    python benchmarks/sampling_overhead.py [-r ROUNDS] [-s STEPS]

Blocks of a decorated training step run plain, recorded, recorded and sampled, in turn, each in a
process of its own with one thread. The first table tells median and mean steps (wall clock: what
py-spy costs is that it stops the program). The second counts samples of a program whose every step
runs a function of its own name, and holds the step of each sample against that name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

BLOCK = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
import tracelens as tl
from workloads import mlp
torch.set_num_threads(1)
work = mlp()
mode, steps, path = sys.argv[2], int(sys.argv[3]), sys.argv[4]
for _ in range(20):
    work.step()
def timed(step):
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
if mode == "plain":
    times = [timed(work.step) for _ in range(steps)]
else:
    step = tl.trace(work.step)
    with tl.trace(path, sample=mode == "sampled", quiet=True):
        time.sleep(0.5)  # py-spy needs a moment to find its way
        times = [timed(step) for _ in range(steps)]
print(json.dumps(times))
"""

TRUTH = """
import sys, time
import tracelens as tl
def work(n):
    scope = {"time": time}
    exec(f"def inner_{n}(until):\\n while time.perf_counter() < until: sum(range(500))", scope)
    scope[f"inner_{n}"](time.perf_counter() + 0.0045)
step = tl.trace(work)
with tl.trace(sys.argv[1], sample=True, quiet=True):
    for n in range(int(sys.argv[2])):
        step(n)
"""


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-s", "--steps", type=int, default=600)
    options = parser.parse_args()
    modes = ("plain", "recorded", "sampled")
    medians: dict[str, list[float]] = {mode: [] for mode in modes}
    means: dict[str, list[float]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for mode in modes:
                path = f"{folder}/{mode}-{number}"
                done = subprocess.run(
                    [sys.executable, "-c", BLOCK, str(HERE), mode, str(options.steps), path],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                times = json.loads(done.stdout)
                medians[mode].append(statistics.median(times))
                means[mode].append(statistics.fmean(times))
        print("| mode | median step ms | to recorded | mean step ms | to recorded |")
        print("|---|---|---|---|---|")
        for mode in modes:
            cells = []
            for figures in (medians, means):
                ratio = statistics.median(
                    own / other
                    for own, other in zip(figures[mode], figures["recorded"], strict=True)
                )
                cells += [f"{1e3 * statistics.median(figures[mode]):.2f}", f"{ratio:.3f}"]
            print(f"| {mode} | {' | '.join(cells)} |")
        right, everything = exact(f"{folder}/truth", 2000)
    print(f"\n{right} of {everything} samples carry the right step: {right / everything:.2%}")


def exact(path: str, steps: int) -> tuple[int, int]:
    """Return how many samples of a step's work carry its number, and how many there are."""
    from tracelens.loaded import load

    subprocess.run([sys.executable, "-c", TRUTH, path, str(steps)], check=True)
    rows = load(path).sql("SELECT stack, step, count FROM samples WHERE stack LIKE '%inner_%'")
    right = sum(count for stack, step, count in rows if f"inner_{step} (" in stack)
    return right, sum(count for *_, count in rows)


if __name__ == "__main__":
    main()
