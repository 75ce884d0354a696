"""How fast ops get onto the disk, what one costs the training thread, and how large it is.

A producer process writes a realistic op stream (``make_trace``'s model) into a stream-mode shard
while its sidecar seals; the clock stops when the trace is closed. The cost of ``write`` is the
median over chunks with the loop around it subtracted. Figures of a busy machine are upper bounds:
``cpu`` is what the processes really used.

    python benchmarks/ingest.py [--ops 2000000] [--dir DIR]
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from make_trace import Model, step_records

from tracelens.storage.ring import Records
from tracelens.storage.sealer import Sealer
from tracelens.storage.writer import ShardWriter

CHUNK = 20_000
CHUNKS = 40


def write_cost_ns(directory: Path) -> dict[str, float]:
    """Return ns per event of ``write`` (flight mode) with and without taking a position."""
    writer = ShardWriter(directory / "cost.tltrace", mode="flight")
    fields = (0, 2, 2, 123, 17, 3, 5_000, 5, -1, -1, 123_456_789, 4_567, 160, 176, -1, -1, 2, 1, 2,
              0, -1.5, 2.5, 0.1, 0.2, 0.3, 4_096, 0, 0, 0, 5, 80_000)  # fmt: skip
    a = fields
    write, reserve = writer.write, writer.reserve
    loops, packs, whole = [], [], []
    for _ in range(CHUNKS):
        started = time.perf_counter_ns()
        for _ in itertools.repeat(None, CHUNK):
            pass
        loops.append(time.perf_counter_ns() - started)
        position = reserve()
        started = time.perf_counter_ns()
        for _ in itertools.repeat(None, CHUNK):
            write(position, *a)
        packs.append(time.perf_counter_ns() - started)
        started = time.perf_counter_ns()
        for _ in itertools.repeat(None, CHUNK):
            write(reserve(), *a)
        whole.append(time.perf_counter_ns() - started)
    writer.close()
    loop = min(loops)
    return {
        "write, least": (min(packs) - loop) / CHUNK,
        "write, median": (statistics.median(packs) - loop) / CHUNK,
        "reserve and write, least": (min(whole) - loop) / CHUNK,
        "reserve and write, median": (statistics.median(whole) - loop) / CHUNK,
    }


def sealing_cost_ns(directory: Path) -> dict[str, float]:
    """Return CPU ns an op of sealing full rings in this process, start-up left out."""
    model = Model()
    random = np.random.default_rng(0)
    steps = [step_records(model, step, random, step * 10**8) for step in range(8)]
    writer = ShardWriter(directory / "seal.tltrace", mode="stream")
    for kind, value in model.strings.values():
        writer.intern(kind, value)
    assert writer._sidecar is not None
    os.kill(writer._sidecar.pid or 0, signal.SIGKILL)
    while writer._sidecar.alive():
        time.sleep(0.01)
    sealer = Sealer(writer.run_dir, writer.shard)
    costs = []
    step = 0
    for _ in range(8):
        while (step + 1) * model.n_ops <= sealer.state.sealed + writer.capacity:
            r = renumbered(steps[step % len(steps)], step, model.n_ops)
            put(writer._ring.records, r, step * model.n_ops)
            step += 1
        before, started = sealer.state.sealed, time.process_time_ns()
        sealer.poll(now=True)
        costs.append((time.process_time_ns() - started) / (sealer.state.sealed - before))
    sealer.close()
    writer.close()
    median = statistics.median(costs[1:])
    return {
        "cpu ns an op, sealing (median)": median,
        "ops a second a free core seals": 1e9 / median,
    }


def sustained(directory: Path, n_ops: int) -> dict[str, float]:
    """Write ``n_ops`` as fast as the sealer takes them; return rates and sizes.

    The records go into the ring by block copies, as fast as a native engine writes them, so
    that the sealer is what is measured; a full ring blocks the producer.
    """
    model = Model()
    random = np.random.default_rng(0)
    steps = [step_records(model, step, random, step * 10**8) for step in range(8)]
    path = directory / "ingest.tltrace"
    writer = ShardWriter(path, mode="stream", on_full="block")
    for number, (kind, value) in model.strings.items():
        assert writer.intern(kind, value) == number
    ring = writer._ring.records
    n_steps = max(1, round(n_ops / model.n_ops))
    started = time.perf_counter()
    position = 0
    for step in range(n_steps):
        r = renumbered(steps[step % len(steps)], step, model.n_ops)
        while position + len(r) > writer._ring.sealed + writer.capacity:
            time.sleep(0.001)
        put(ring, r, position)
        position += len(r)
        writer._ring.set_head_hint(position)
    written = time.perf_counter() - started
    writer.close()
    seconds = time.perf_counter() - started
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return {
        "ops": position,
        "seconds": seconds,
        "ops a second until closed": position / seconds,
        "ops a second while recording": position / written,
        "cpu ns an op in the sidecar": (cpu.ru_utime + cpu.ru_stime) / position * 1e9,
        "bytes an op on disk": size / position,
    }


def renumbered(template: Records, step: int, n: int) -> Records:
    """Return a step's records as those of another step."""
    r = template.copy()
    shift = step * n - int(r["op_id"][0])
    r["op_id"] += shift
    r["step"] = step
    r["value_id"] += shift * 16
    r["in_ids"][r["in_ids"] >= 0] += shift * 16
    r["fwd_op_id"][r["fwd_op_id"] >= 0] += shift
    r["start_ns"] += (step - int(template["step"][0])) * 10**8
    return r


def put(ring: Records, r: Records, position: int) -> None:
    """Copy records into the ring, ``seq`` last."""
    slots = (position + np.arange(len(r))) % len(ring)
    seq = position + 1 + np.arange(len(r))
    first = int(slots[0])
    until = min(len(r), len(ring) - first)
    r["seq"] = 0
    ring[first : first + until] = r[:until]
    ring[: len(r) - until] = r[until:]
    ring["seq"][slots] = seq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", type=int, default=2_000_000)
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: /tmp)")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=options.dir))
    try:
        for name, ns in write_cost_ns(directory).items():
            print(f"{name:36} {ns:12.0f} ns an event    (goal: 700)")
        for name, value in sealing_cost_ns(directory).items():
            print(f"{name:36} {value:12,.1f}")
        for name, value in sustained(directory, options.ops).items():
            print(f"{name:36} {value:12,.1f}")
        print("goals: 1,000,000 ops a second, 24 bytes an op")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
