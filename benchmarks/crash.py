"""Kill recording programs at random moments and count what is lost (goal: nothing).

python benchmarks/crash.py [--trials 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "robustness"))
from crash_trial import trial

CASES = [(mode, victims) for mode in ("stream", "flight") for victims in ("program", "both")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    totals: Counter[str] = Counter()
    committed = []
    for number in range(options.trials):
        mode, victims = CASES[number % len(CASES)]
        with tempfile.TemporaryDirectory() as directory:
            try:
                outcome = trial(Path(directory), mode, victims, number)
            except Exception as error:
                totals["unreadable"] += 1
                print(f"trial {number} ({mode}, {victims}): {error!r}")
                continue
        committed.append(outcome.committed)
        totals["lost"] += outcome.lost
        totals["lost before repair"] += outcome.lost_before_repair
        totals["holes"] += outcome.holes
        totals["trials with holes"] += outcome.holes > 0
        totals["problems"] += len(outcome.problems)
        if outcome.lost or outcome.lost_before_repair or outcome.problems:
            print(f"trial {number} ({mode}, {victims}): {outcome}")
    print(f"{options.trials} kills, {sum(committed)} committed records "
          f"(median {statistics.median(committed):.0f} a kill)")  # fmt: skip
    for name in ("unreadable", "lost before repair", "lost", "problems", "holes",
                 "trials with holes"):  # fmt: skip
        print(f"{name:20} {totals[name]}")
    return 1 if totals["unreadable"] or totals["lost"] or totals["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
