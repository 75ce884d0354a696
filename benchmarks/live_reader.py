"""How old an event is when a follower of a live trace first sees it.

A process records ops at a steady rate and an event every few milliseconds; this one polls the
trace as a viewer does. Prints the age of ops and events when first seen, poll interval included.

    python benchmarks/live_reader.py [--seconds 8] [--rate 20000] [--poll-ms 20]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from tracelens.storage.tail import Tail
from tracelens.storage.writer import ShardWriter

_BATCH_S = 0.005


def record(path: str, seconds: float, rate: float) -> None:
    """Write ``rate`` ops a second in small bursts, and one event a burst."""
    writer = ShardWriter(path, mode="stream", ring_bytes=16 << 20)
    site = writer.intern("site", {"op": "aten::mm", "module": "layers.0"})
    fields = (0.0, 1.0, 0.5, 0.1, 2.0, 64, 0, 0, 0, -1)
    end = time.monotonic() + seconds
    burst = max(1, int(rate * _BATCH_S))
    while time.monotonic() < end:
        started = time.monotonic()
        for _ in range(burst):
            op_id = writer.reserve_op_id()
            writer.write(
                writer.reserve(), 0, 2, 2, 1, site, 0, op_id, 0, -1, -1, writer.now_ns(), 900,
                -1, -1, -1, -1, 0, 1, 2, 0, *fields, op_id * 16,
            )  # fmt: skip
        writer.event("note", kind="data", message="x", t_ns=writer.now_ns())
        time.sleep(max(0.0, _BATCH_S - (time.monotonic() - started)))
    writer.close()


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=20_000.0)
    parser.add_argument("--poll-ms", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "run.tltrace")
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=record, args=(path, options.seconds, options.rate))
        process.start()
        while not list(Path(path).glob("_shards/*.json")):
            time.sleep(0.01)
        epoch_ns = _epoch_monotonic_ns(path)
        tail = Tail(path)
        ages: dict[str, list[float]] = {"op": [], "event": []}
        polls: list[float] = []
        missed = skipped = 0
        while process.is_alive():
            started = time.perf_counter()
            news = tail.poll()
            polls.append((time.perf_counter() - started) * 1e3)
            now_ns = time.monotonic_ns() - epoch_ns
            ages["op"] += [(now_ns - op.start_ns) / 1e6 for op in news.ops]
            ages["event"] += [(now_ns - event["t_ns"]) / 1e6 for event in news.events]
            missed += news.missed
            skipped += news.skipped
            time.sleep(options.poll_ms / 1e3)
        process.join()
        tail.close()
    for kind, values in ages.items():
        print(
            f"{kind}s: {len(values)} seen, age p50 {percentile(values, 0.5):.1f} ms, "
            f"p99 {percentile(values, 0.99):.1f} ms, max {max(values):.1f} ms (goal: below 100 ms)"
        )
    print(
        f"polls: {len(polls)}, median {statistics.median(polls):.2f} ms each, every "
        f"{options.poll_ms:g} ms; records skipped: {skipped}, missed: {missed}"
    )


def _epoch_monotonic_ns(path: str) -> int:
    from tracelens.storage.manifest import read_manifest
    from tracelens.storage.rundir import monotonic_epoch_ns

    return monotonic_epoch_ns(read_manifest(path).epoch_unix_ns)


if __name__ == "__main__":
    main()
