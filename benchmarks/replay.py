"""From a hit to its op: how long running a bad step again takes, and whether it was the same step.

Usage: ``python benchmarks/replay.py [mlp gpt conv] [--compiled]``. Prints, for a NaN planted in
forward and one that only appears in backward: the median plain step (CPU time), the step with the
hit (its replay and its explanation included) as a multiple of it, the replay's note, the line
found.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from workloads import WORKLOADS, Workload

import tracelens as tl
from tracelens.storage.reader import open_trace

WARM_STEPS = 6
LINES = {
    "forward": "return out + torch.log(1.0 - 2.0 * self.on * torch.ones_like(out))",
    "backward": "return out + self.on * torch.sqrt((out - out) ** 2 + 1.0 - self.on)",
}


class Spoiler:
    """A forward hook that spoils what a module puts out, once ``on`` is 1."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.on = torch.zeros(())

    def __call__(self, module: object, args: object, out: torch.Tensor) -> torch.Tensor:
        """Return the output, spoiled or equal."""
        if self.kind == "forward":
            return out + torch.log(1.0 - 2.0 * self.on * torch.ones_like(out))
        return out + self.on * torch.sqrt((out - out) ** 2 + 1.0 - self.on)


def timed(step: Callable[[], object]) -> float:
    """Return the CPU time of a call in seconds: wall time measures the machine's other work."""
    started = time.process_time()
    step()
    return time.process_time() - started


def middle(workload: Workload) -> torch.nn.Module:
    """Return a layer in the middle of the model."""
    leaves = [m for m in workload.model.modules() if isinstance(m, torch.nn.Linear)]
    return leaves[len(leaves) // 2]


def measure(name: str, kind: str, *, compiled: bool) -> None:
    workload = WORKLOADS[name]()
    spoiler = Spoiler(kind)
    middle(workload).register_forward_hook(spoiler)
    if compiled:
        workload.model.compile()
    for _ in range(2):
        workload.step()
    plain = statistics.median(timed(workload.step) for _ in range(WARM_STEPS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.tltrace"
        with tl.trace(path, engine="sentinel", nonfinite="record", quiet=True):
            step = tl.trace(workload.step)
            for _ in range(WARM_STEPS):
                step()
            spoiler.on.fill_(1.0)
            hit = timed(step)
        trace = open_trace(path)
        note = next(e["message"] for e in trace.events("note") if e["kind"] == "replay")
        findings = trace.findings()
    cause = (findings[0].get("first_cause") or {}) if findings else {}
    code = (cause.get("source") or {}).get("code", "")
    word = "right line" if code == LINES[kind] else f"line {code!r}"
    print(
        f"{name:5} {kind:8} {'compiled' if compiled else 'eager':8} "
        f"step {plain * 1e3:7.1f} ms   hit {hit * 1e3:7.1f} ms = {hit / plain:5.1f} steps   "
        f"{cause.get('op')} {word}   {note}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=["mlp", "gpt", "conv"])
    parser.add_argument("--compiled", action="store_true", help="compile the model with inductor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.workloads:
        for kind in LINES:
            measure(name, kind, compiled=options.compiled)


if __name__ == "__main__":
    main()
