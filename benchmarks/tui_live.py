"""How soon an op of a running program is on the screen, and what an open screen costs the program.

A small network trains at `capture="ops"`; `tracelens view` follows it on a pseudo-terminal. Marker
ops of known times give the delay. Turns with and without the screen alternate; each turn is a
process of its own and reports the time of its steps.

    python benchmarks/tui_live.py [--rounds 3] [--steps 400]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tui_open import Terminal

TRAINING = """
import json, sys, time
import torch
import tracelens as tl

torch.manual_seed(0)
torch.set_num_threads(1)
steps = int(sys.argv[2])
model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
x = torch.randn(64, 256)
times = []
with tl.trace(sys.argv[1], capture="ops", quiet=True) as session:
    for step in range(steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        session.step(loss=loss)
        times.append(time.perf_counter() - started)
        if step == 20:
            print("READY", flush=True)
            sys.stdin.readline()
    for _ in range(5):
        time.sleep(1.0)
        torch.special.erfcx(x)
        print(json.dumps({"marker": time.time()}), flush=True)
        time.sleep(1.0)
        x.add(1)
        for _ in range(80):  # push the marker off the screen
            x.add(1)
print(json.dumps({"steps": times[21:]}), flush=True)
"""


def turn(folder: Path, steps: int, *, watched: bool) -> tuple[float, list[float]]:
    """Train once; return the median step (s) and the delays of the markers (s)."""
    trace = folder / f"{time.monotonic_ns()}.tltrace"
    program = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(trace), str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert program.stdin is not None and program.stdout is not None
    program.stdout.readline()
    terminal = None
    if watched:
        tracelens = str(Path(sys.executable).with_name("tracelens"))
        terminal = Terminal([tracelens, "view", str(trace)])
        terminal.until(b"LIVE")
    program.stdin.write("go\n")
    program.stdin.flush()
    delays: list[float] = []
    median = 0.0
    os.set_blocking(program.stdout.fileno(), False)
    text = ""
    while not median:
        if terminal is not None:
            terminal.read(0.01)
        else:
            time.sleep(0.01)
        try:
            text += os.read(program.stdout.fileno(), 1 << 16).decode()
        except BlockingIOError:
            continue
        while "\n" in text:
            line, _, text = text.partition("\n")
            told = json.loads(line)
            if "steps" in told:
                median = statistics.median(told["steps"])
            elif terminal is not None:
                while b"erfcx" not in terminal.seen and time.time() - told["marker"] < 5:
                    terminal.read(0.01)
                delays.append(time.time() - told["marker"])
                terminal.settle(0.3)
                terminal.seen = b""
    if terminal is not None:
        terminal.close()
    program.wait()
    return median, delays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    alone, watched, delays = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            alone.append(turn(Path(folder), options.steps, watched=False)[0])
            median, found = turn(Path(folder), options.steps, watched=True)
            watched.append(median)
            delays += found
    print(f"a step alone {min(alone) * 1e3:.3f} ms, watched {min(watched) * 1e3:.3f} ms: "
          f"{min(watched) / min(alone):.3f}x (least of {options.rounds} medians)")  # fmt: skip
    print(f"an op is on the screen after {statistics.median(delays) * 1e3:.0f} ms median, "
          f"{max(delays) * 1e3:.0f} ms at most (n={len(delays)})")  # fmt: skip


if __name__ == "__main__":
    main()
