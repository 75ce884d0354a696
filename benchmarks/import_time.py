"""What `import tracelens` and each first use cost, beside an interpreter that imports nothing.

Every figure is the median of fresh processes, the cases interleaved so that a busy machine
slows all of them alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15
CASES = {
    "python -c pass": "pass",
    "import tracelens": "import tracelens",
    "decorate a function": "import tracelens as tl\n@tl.trace\ndef f(): ...",
    "import tracelens.cli": "import tracelens.cli",
    "import numpy": "import numpy",
}
GOAL_MS = 30


def once_ms(code: str) -> float:
    """Return how long a fresh interpreter takes to run a program, in milliseconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, code in CASES.items():
            times[name].append(once_ms(code))
    base = statistics.median(times["python -c pass"])
    print(f"{'':24}{'median ms':>10}{'over python':>12}{'least ms':>10}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:24}{median:10.1f}{median - base:12.1f}{min(values):10.1f}")
    extra = statistics.median(times["import tracelens"]) - base
    print(f"\nimport tracelens: {extra:.1f} ms over an empty interpreter (goal: < {GOAL_MS} ms)")


if __name__ == "__main__":
    main()
