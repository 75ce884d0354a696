"""Measure the cursor on a large trace: every move, search and page, many times, at random places.

Prints the median and the 95th percentile of each in milliseconds, and whether it meets its goal:
33 ms for what a key does, 100 ms for going back to the last write of a bad value, 300 ms for the
first match of a search, wherever it is.

    python benchmarks/make_trace.py /tmp/big.tltrace --ops 10000000
    python benchmarks/cursor_big.py /tmp/big.tltrace [--times 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Callable
from typing import Any

from tracelens import filters
from tracelens.cursor import Cursor
from tracelens.storage.reader import open_trace

KEY_MS, BAD_WRITE_MS, SEARCH_MS = 33.0, 100.0, 300.0
SEARCHES = (
    "aten::log", "@nan", "@bad", "train/model.py:55", "layers.11.mlp", "absmax>1e4", "op~softmax",
    "phase:optimizer and not @bad", "aten::no_such_op", "code~nothing_like_it", "step:7",
)  # fmt: skip


def timed(times: int, prepare: Callable[[], Any], move: Callable[[], Any]) -> list[float]:
    """Return milliseconds of each move, each after a preparation that is not measured."""
    spent = []
    for _ in range(times):
        prepare()
        start = time.perf_counter()
        move()
        spent.append(1e3 * (time.perf_counter() - start))
    return sorted(spent)


def show(name: str, spent: list[float], goal_ms: float) -> None:
    """Print one line of the table."""
    median, high = spent[len(spent) // 2], spent[min(len(spent) - 1, int(0.95 * len(spent)))]
    verdict = "ok" if high <= goal_ms else "MISSED"
    print(f"{name:44} {median:9.2f} {high:9.2f} {spent[-1]:9.2f} {goal_ms:7.0f}  {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    started = time.perf_counter()
    reader = open_trace(options.trace)
    cursor = Cursor(reader)
    print(f"open and first op: {1e3 * (time.perf_counter() - started):.1f} ms")
    count = cursor.count
    print(f"{count:,} ops, {len(cursor.findings.op_ids())} ops named by findings")
    print(f"{'move':44} {'median':>9} {'p95':>9} {'worst':>9} {'goal':>7}  [ms]")

    def anywhere() -> None:
        cursor.goto(index=dice.randrange(count))

    def stay() -> None:
        pass

    times = options.times
    cold = timed(times, stay, anywhere)
    show("go anywhere", cold, KEY_MS)
    for name in (
        "step", "reverse_step", "next", "reverse_next", "finish", "reverse_finish",
        "next_training_step", "previous_training_step", "next_finding", "producers",
        "consumers", "why",
    ):  # fmt: skip
        show(
            f"{name.replace('_', ' ')}, from anywhere",
            timed(times, anywhere, getattr(cursor, name)),
            KEY_MS,
        )
    anywhere()
    show("step, again and again", timed(5 * times, stay, cursor.step), KEY_MS)
    show("reverse step, again and again", timed(5 * times, stay, cursor.reverse_step), KEY_MS)

    def page() -> None:
        start = dice.randrange(max(1, count - 50))
        reader.ops_at(start, start + 50)

    show("page of 50 rows, anywhere", timed(times, stay, page), KEY_MS)
    bad_writes(cursor, max(5, times // 10))
    few = max(3, times // 40)
    for text in SEARCHES:
        condition = filters.compile(text)

        def search(condition: filters.Filter = condition) -> None:
            cursor.find(condition)

        spent = timed(few, lambda: cursor.goto(index=0), search)
        show(f"search from the start: {text}", spent, SEARCH_MS)
        spent = timed(
            few, lambda: cursor.goto(index=count - 1), lambda c=condition: cursor.find(c, back=True)
        )  # type: ignore[misc]
        show(f"search from the end: {text}", spent, SEARCH_MS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory {peak:.0f} MB")
    reader.close()


def bad_writes(cursor: Cursor, times: int) -> None:
    """Measure going back to what last wrote a bad value that an op reads."""
    places = cursor.findings.op_ids()
    if not places:
        return
    cursor.stop_at_findings = False

    def prepare() -> None:
        cursor.breaks.remove()
        cursor.goto(op_id=places[-1])
        value = cursor.op.inputs[0].value_id if cursor.op is not None and cursor.op.inputs else 0
        cursor.breaks.add(f"writes:{value}")

    show(
        "back to the last write of a bad value",
        timed(times, prepare, cursor.reverse_resume),
        BAD_WRITE_MS,
    )
    cursor.breaks.remove()
    cursor.breaks.add("@bad")
    last = cursor.count - 1
    show(
        "back to the last non-finite op, from the end",
        timed(times, lambda: cursor.goto(index=last), cursor.reverse_resume),
        BAD_WRITE_MS,
    )
    cursor.breaks.remove()


if __name__ == "__main__":
    main()
