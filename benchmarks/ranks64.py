"""How long the summary of a run of many ranks takes, and whether DuckDB and Spark agree.

    python benchmarks/ranks64.py --ranks 64 --ops 1000000 [--spark] [--master URL] [--keep DIR]

The trace is made by `make_ranks.py` in a temporary directory and removed afterwards. Goal: a
summary of 64 ranks x 1 M ops in less than 10 s on 2 cores, equal rows from both engines.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from make_ranks import make

from tracelens.engines import open_engine, queries


def timed_verb(verb: str, trace: Path, *options: str) -> float:
    """Run a verb as a person would, in a process of its own; return its seconds."""
    command = [sys.executable, "-m", "tracelens", verb, str(trace), "--json", *options]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def compare(trace: Path, master: str | None) -> None:
    """Run every query on both engines and print their times and whether their rows are equal."""
    started = time.perf_counter()
    with open_engine(trace) as duck, open_engine(trace, "spark", master=master) as spark:
        print(f"\nboth engines opened in {time.perf_counter() - started:.1f} s")
        print(f"{'query':34}{'rows':>8}{'DuckDB s':>10}{'Spark s':>9}  equal")
        same = 0
        texts = queries.portable()
        for name, text in texts.items():
            at = [time.perf_counter()]
            left = duck.rows(text)
            at.append(time.perf_counter())
            right = spark.rows(text)
            at.append(time.perf_counter())
            equal = sorted(map(repr, left)) == sorted(map(repr, right))
            same += equal
            print(
                f"{name:34}{len(left):8}{at[1] - at[0]:10.2f}{at[2] - at[1]:9.2f}  "
                f"{'yes' if equal else 'NO'}"
            )
        print(f"{same} of {len(texts)} queries gave equal rows")


def main() -> None:
    """Make the run, time the verbs, compare the engines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--ops", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spark", action="store_true", help="compare with Spark")
    parser.add_argument("--master", help="Spark's master URL")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the run here, or use it")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="tracelens-ranks-"))
    trace = folder / f"ranks{options.ranks}x{options.ops}.tltrace"
    try:
        if not trace.exists():
            started = time.perf_counter()
            rows = make(trace, options.ranks, options.ops)
            print(f"made {rows:,} rows in {time.perf_counter() - started:.1f} s")
        for verb in ("summary", "ranks"):
            times = [timed_verb(verb, trace) for _ in range(options.rounds)]
            each = ", ".join(f"{seconds:.2f}" for seconds in times)
            print(f"{verb:8} DuckDB   {min(times):6.2f} s  (of {each})")
            if options.spark:
                more = ["--engine", "spark"]
                more += ["--master", options.master] if options.master else []
                print(f"{verb:8} Spark    {timed_verb(verb, trace, *more):6.2f} s")
        if options.spark:
            compare(trace, options.master)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
