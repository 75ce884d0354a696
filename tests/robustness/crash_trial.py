"""One crash: a program that records from several threads is killed, and its trace is checked.

Each thread counts, in memory shared with the checker, the records whose ``write`` has returned:
every one of those must be in the trace.

    python tests/robustness/crash_trial.py RUN_DIR TRUTH_FILE MODE     (the program to kill)
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

THREADS = 3
RING_BYTES = {"stream": 2 << 20, "flight": 8 << 20}
_TRUTH = struct.Struct("<q")


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Attributes:
        committed: records whose write had returned before the kill.
        lost: of those, how many the repaired trace lacks.
        lost_before_repair: how many a reader of the unrepaired trace lacked.
        holes: reserved positions that were never written.
        problems: what a reader or ``verify`` said is wrong with the repaired trace.
    """

    committed: int
    lost: int
    lost_before_repair: int
    holes: int
    problems: list[str]


def trial(directory: Path, mode: str, victims: str, seed: int) -> Outcome:
    """Run the program, kill it at a random moment, and check its trace.

    Args:
        directory: an empty directory.
        mode: ``stream`` or ``flight``.
        victims: ``program``, or ``both`` (its sealing process too).
        seed: chooses the moment.
    """
    run_dir, truth_file = directory / "a.tltrace", directory / "truth"
    truth_file.write_bytes(bytes(8 * (THREADS + 1)))
    with subprocess.Popen([sys.executable, __file__, run_dir, truth_file, mode]) as program:
        truth = _map(truth_file)
        while not _count(truth, 0) and program.poll() is None:
            time.sleep(0.002)
        time.sleep(random.Random(seed).uniform(0.0, 1.5))
        sealer = _count(truth, THREADS)
        if victims == "both":
            os.kill(sealer, signal.SIGKILL)
        program.kill()
    counts = [_count(truth, thread) for thread in range(THREADS)]
    if victims == "program":
        _wait_until_gone(sealer)
    return _check(run_dir, mode, counts)


def _check(run_dir: Path, mode: str, counts: list[int]) -> Outcome:
    from tracelens.storage.reader import open_trace
    from tracelens.storage.recovery import repair
    from tracelens.storage.verify import verify

    before = _lost(_records(run_dir), mode, counts)
    repair(run_dir)
    lost = _lost(_records(run_dir), mode, counts)
    dropped = json.loads((run_dir / "_shards" / "r00000-0.json").read_text())["dropped"]
    with open_trace(run_dir) as trace:
        names = {row[0] for row in trace.sql("SELECT DISTINCT name FROM ops")}
    problems = [f"{p.kind}: {p.message}" for p in verify(run_dir) if p.kind != "dropped"]
    problems += [f"op name {name!r}" for name in names - {f"op{t}" for t in range(THREADS)}]
    return Outcome(sum(counts), lost, before, dropped, problems)


def _records(run_dir: Path) -> list[tuple[int, int]]:
    """Return (thread, number) of every op that a reader finds."""
    from tracelens.storage.reader import open_trace

    with open_trace(run_dir) as trace:
        return [(int(t), int(k)) for t, k in trace.sql("SELECT tid, start_ns FROM ops")]


def _lost(found: list[tuple[int, int]], mode: str, counts: list[int]) -> int:
    """Count committed records that were not found; a flight recorder keeps only the newest."""
    lost = 0
    for thread, count in enumerate(counts):
        numbers = np.array(sorted(k for t, k in found if t == thread), dtype=np.int64)
        first = 0 if mode == "stream" or not len(numbers) else int(numbers[0])
        if mode == "flight" and not len(numbers):
            continue  # the other threads have overwritten all of this one's
        lost += len(np.setdiff1d(np.arange(first, count), numbers))
    return lost


def _map(path: Path) -> mmap.mmap:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _count(truth: mmap.mmap, index: int) -> int:
    return int(_TRUTH.unpack_from(truth, 8 * index)[0])


def _wait_until_gone(pid: int) -> None:
    for _ in range(3000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("the sealing process did not end")


def _record(run_dir: str, truth_file: str, mode: str) -> None:
    """Record until killed."""
    from tracelens.storage.writer import ShardWriter

    writer = ShardWriter(run_dir, mode=mode, ring_bytes=RING_BYTES[mode], on_full="block")
    truth = _map(Path(truth_file))
    assert writer._sidecar is not None
    _TRUTH.pack_into(truth, 8 * THREADS, writer._sidecar.pid)

    def work(thread: int) -> None:
        sites: list[int] = []
        for number in range(1 << 40):
            if number % 500 == 0:
                site = {"op": f"op{thread}", "line": number // 500 + 1, "file": "a.py"}
                sites.append(writer.intern("site", site))
                writer.event("note", kind="data", severity="info", message=str(number))
            op_id = writer.reserve_op_id()
            writer.write(
                writer.reserve(), 0, 2, 2, thread, sites[-1], 0, op_id, number // 100, -1, -1,
                number, 5, 1, 2, -1, -1, 2, 1, 2, 0, -1.0, 1.0, 0.0, 1.0, 2.0, 8, 0, 0, 0, 0,
                op_id * 16,
            )  # fmt: skip
            _TRUTH.pack_into(truth, 8 * thread, number + 1)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    _record(*sys.argv[1:])
