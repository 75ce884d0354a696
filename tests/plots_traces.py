"""Traces for the tests of pictures, reports, notebooks and frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tracelens.storage.bulk import BulkShard
from tracelens.storage.columns import Coded

HOSTILE = "<script>alert(1)</script>"
HOSTILE_ATTRIBUTE = '"><img src=x onerror=alert(2)>'


def training(path: Path, *, bad_step: int | None = None, steps: int = 6) -> Path:
    """Record a small real training; from ``bad_step`` on its loss is NaN."""
    import torch

    import tracelens as tl

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, wanted = torch.randn(16, 4), torch.randn(16, 2)
    with tl.trace(path, capture="tensors", quiet=True) as session:
        tl.watch(model)
        for step in range(steps):
            difference = model(inputs) - wanted
            square = difference.square().mean()
            loss = square if step != bad_step else torch.log(square - square) * 0
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            session.step(loss=loss, grad_norm=norm)
    return path


def hostile(path: Path) -> Path:
    """Write a trace whose every text wants to be markup."""
    names = Coded([0, 1], [HOSTILE, HOSTILE_ATTRIBUTE])
    with BulkShard(path, framework=HOSTILE, host=HOSTILE_ATTRIBUTE) as shard:
        shard.write(
            "ops",
            {
                "op_id": np.arange(2),
                "step": np.arange(2),
                "ord": np.zeros(2),
                "name": names,
                "module": names,
                "phase": Coded([0, 0], ["backward"]),
                "file": names,
                "line": np.array([1, 2]),
                "start_ns": np.arange(2),
                "duration_ns": np.array([5, 7]),
                "numel": np.array([4, 4]),
                "nan_count": np.array([0, 1]),
                "inf_count": np.zeros(2),
                "l2": np.array([1.0, 2.0]),
            },
        )
        shard.write(
            "kernels",
            {
                "kern_id": np.arange(2),
                "step": np.arange(2),
                "kind": Coded([0, 0], ["kernel"]),
                "name": names,
                "device": np.zeros(2),
                "stream": np.zeros(2),
                "start_ns": np.arange(2),
                "duration_ns": np.array([5, 7]),
            },
        )
        for step in range(2):
            scalars = {HOSTILE: 1.0 + step, f"loss{HOSTILE_ATTRIBUTE}": 0.5}
            shard.event("step", step=step, start_ns=step, duration_ns=10, hits=0, scalars=scalars)
        shard.event("note", kind=HOSTILE, severity=HOSTILE, message=HOSTILE_ATTRIBUTE, step=0)
        shard.event("finding", **_finding())
    return path


def wide(path: Path, *, steps: int = 2000, modules: int = 150) -> Path:
    """Write a trace with more modules and steps than a picture has room for."""
    count = steps * modules
    ids = np.arange(count)
    bad = np.zeros(count, dtype=np.int64)
    bad[-1] = 3
    with BulkShard(path) as shard:
        shard.write(
            "ops",
            {
                "op_id": ids,
                "step": ids // modules,
                "ord": ids % modules,
                "name": Coded(np.zeros(count), ["aten::mm"]),
                "module": Coded(
                    ids % modules, [f"encoder.layers.{n}.attention.out" for n in range(modules)]
                ),
                "phase": Coded(np.zeros(count), ["backward"]),
                "start_ns": ids,
                "duration_ns": np.ones(count),
                "numel": np.full(count, 9),
                "nan_count": bad,
                "inf_count": np.zeros(count),
                "l2": 1.0 + (ids % 97),
            },
        )
        for step in range(steps):
            loss = float("nan") if step == steps // 2 else 1.0 / (step + 1)
            shard.event("step", step=step, start_ns=step, duration_ns=7, scalars={"loss": loss})
    return path


def _finding() -> dict[str, object]:
    frame = {"file": HOSTILE, "line": 3, "function": HOSTILE, "code": HOSTILE_ATTRIBUTE}
    return {
        "rule": HOSTILE,
        "severity": "error",
        "verdict": "non-finite",
        "step": 1,
        "message": HOSTILE_ATTRIBUTE,
        "advice": HOSTILE,
        "source": frame,
        "path": [],
        "first_cause": {
            "op": HOSTILE,
            "phase": "forward",
            "step": 1,
            "module": HOSTILE_ATTRIBUTE,
            "source": frame,
            "why": HOSTILE,
            "fix": HOSTILE_ATTRIBUTE,
            "inputs": [],
            "outputs": [],
        },
    }
