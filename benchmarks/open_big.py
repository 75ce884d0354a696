"""How fast a big trace opens and answers; each figure in a process of its own.

Prints medians of fresh processes: opening, the first op (which imports DuckDB and connects), then
any op, any step's first page, a page in the middle, a group-by over all ops, and resident memory.
Imports are told apart from opening, because a program pays them once.

    python benchmarks/make_trace.py bench-out/big.tltrace --ops 10000000
    python benchmarks/open_big.py bench-out/big.tltrace [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

GOALS = {
    "open": 100.0,
    "any op": 20.0,
    "any step (page)": 50.0,
    "group-by over all": 500.0,
}


def timed(question: Callable[[], Any]) -> tuple[list[float], Any]:
    """Return wall and CPU milliseconds, and the answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = question()
    return [(time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3], answer


def middle(times: Iterable[list[float]]) -> list[float]:
    """Return the medians of wall and CPU times."""
    return [statistics.median(column) for column in zip(*times, strict=True)]


def measure(path: str, seed: int) -> dict[str, list[float]]:
    """Time one fresh process's questions: milliseconds of wall and CPU time."""
    dice = random.Random(seed)
    figures: dict[str, list[float]] = {}
    figures["import reader"], open_trace = timed(_import_reader)
    figures["open"], reader = timed(lambda: open_trace(path))
    count = reader.count_ops()
    figures["import duckdb"], _ = timed(lambda: __import__("duckdb"))
    figures["first op (connects)"], _ = timed(lambda: reader.op(count // 2))
    ids = [dice.randrange(count) for _ in range(20)]
    figures["any op"] = middle(timed(lambda i=i: reader.op(i))[0] for i in ids)
    figures["any op, slowest of 20"] = max(timed(lambda i=i: reader.op(i + 4096))[0] for i in ids)
    last_step = reader.op(count - 1).step
    steps = [dice.randrange(last_step) for _ in range(8)]
    figures["any step (page)"] = middle(
        timed(lambda s=s: reader.ops(step=s, limit=50))[0] for s in steps
    )
    figures["page of 50 in the middle"] = middle(
        timed(lambda i=i: reader.ops(after_op_id=i, limit=50))[0] for i in ids[:8]
    )
    figures["group-by, first (views, checksums)"], _ = timed(lambda: reader.group("name"))
    figures["group-by over all"] = middle(timed(lambda: reader.group("name"))[0] for _ in range(3))
    figures["one step by SQL"] = middle(
        timed(lambda s=s: reader.sql(f"SELECT count(*), sum(numel) FROM ops WHERE step = {s}"))[0]
        for s in steps
    )
    figures["hits over all"], _ = timed(lambda: reader.hits())
    figures["resident MB"] = [_resident_mb(), 0.0]
    reader.close()
    return figures


def _import_reader() -> Any:
    from tracelens.storage.reader import open_trace

    return open_trace


def _resident_mb() -> float:
    from tracelens.storage.sql import resident_bytes

    return resident_bytes() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(options.trace, options.child)))
        return
    runs = []
    for seed in range(options.runs):
        command = [sys.executable, __file__, options.trace, "--child", str(seed)]
        runs.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    print(f"{'':36} {'median':>9} {'best':>9} {'CPU':>9} {'goal':>7}")
    for name in runs[0]:
        walls = [run[name][0] for run in runs]
        cpu = statistics.median(run[name][1] for run in runs)
        goal = f"{GOALS[name]:.0f}" if name in GOALS else ""
        print(f"{name:36} {statistics.median(walls):9.1f} {min(walls):9.1f} {cpu:9.1f} {goal:>7}")
    print("milliseconds; CPU is of all threads, and does not grow when the machine is busy")


if __name__ == "__main__":
    main()
