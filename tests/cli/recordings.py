"""Traces that tests of the command line read, recorded with the toy framework."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOY = Path(__file__).parents[1] / "toy"

BAD = """
import sys
import toyframework as toy
import tracelens as tl

with tl.trace(sys.argv[1], capture=sys.argv[2], quiet=True) as session:
    backend = session.backends[0]
    for step, x in enumerate([2.0, 1.0, 0.0]):
        loss = toy.mul(toy.log(toy.Value(x)), toy.Value(-1.0))
        if x == 0:
            backend.sink("loss", "loss", loss)
        session.step(loss=loss, lr=0.1)
"""
CLEAN = BAD.replace("[2.0, 1.0, 0.0]", "[4.0, 3.0, 2.0]")
MASKED = BAD.replace('backend.sink("loss", "loss", loss)', "pass")


def record(source: str, path: Path, capture: str = "ops") -> Path:
    """Record a program in a process of its own and return the trace's path."""
    subprocess.run(
        [sys.executable, "-c", source, str(path), capture],
        env={**os.environ, "PYTHONPATH": str(TOY)},
        check=True,
        timeout=300,
    )
    return path
