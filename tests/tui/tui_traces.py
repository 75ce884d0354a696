"""Traces that the tests open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trace_builder import TraceBuilder, training_run
from tracelens.storage.tensors import TensorStore

SOURCE = """\
import torch


def step(x):
    # one training step
    scale = 0.5


    # the network
    y = layer(x)
    y = torch.relu(y)
    y = outer(y)
    y = torch.exp(y)
    y = torch.log(y)
    y = y * scale
    return mse_loss(y)
"""
"""A file `train.py` whose lines are those of `training_run`."""


def nan_run(path: Path, *, values: bool = False) -> Path:
    """Record three steps; op 19 (exp) of the last makes a NaN that reaches the loss.

    Args:
        path: where.
        values: store the values of its output, and of another tensor in two steps.
    """
    trace = training_run(path)
    path.with_name("train.py").write_text(SOURCE, encoding="utf-8")
    trace.event("finding", **finding())
    if values:
        store = TensorStore(path, trace.shard)
        bad = np.linspace(-3, 3, 24 * 32, dtype=np.float32).reshape(24, 32)
        bad[5, 7] = np.nan
        bad[20, 30] = np.inf
        _keep(trace, store, "exp", bad, step=2, op_id=19, value_id=19 * 16)
        for step in (1, 2):
            image = np.linspace(0, step, 3 * 16 * 16, dtype=np.float32).reshape(3, 16, 16)
            _keep(trace, store, "image", image, step=step, op_id=-1, value_id=-1)
        store.close()
    return trace.close()


def _keep(trace: TraceBuilder, store: TensorStore, name: str, array: Any, **fields: int) -> None:
    place = store.put(array.tobytes(), "float32", array.shape)
    trace.event("tensor", name=name, **fields, **place)


def finding() -> dict[str, Any]:
    """Return the finding of the NaN, as a session writes it."""
    source = {"file": "train.py", "line": 13, "function": "step", "code": "y = torch.exp(y)"}

    def entry(op: str, op_id: int, note: str) -> dict[str, Any]:
        return {
            "op": op, "phase": "forward", "op_id": op_id, "step": 2, "module": "layers.0",
            "source": source, "note": note,
        }  # fmt: skip

    tensor = {
        "shape": [2, 3], "dtype": "float32", "device": "cpu", "limit": 3.4e38, "numel": 6,
        "nan": 1, "posinf": 0, "neginf": 0, "min": -2.0, "max": 3.0, "first_bad": [[1, 1]],
    }  # fmt: skip
    cause = {
        **entry("aten::exp", 19, ""), "kind": "nan", "rank": 0, "inputs": [], "outputs": [tensor],
        "why": "exp of a number that was too large.", "fix": "clamp its input", "exact": True,
        "rule": "overflow", "origin": "op",
    }  # fmt: skip
    return {
        "rule": "exp-overflow", "severity": "error", "verdict": "non-finite", "kind": "nan",
        "step": 2, "rank": 0, "source": source, "message": "NaN first made by exp at train.py:13",
        "advice": "clamp its input", "first_cause": cause, "exact": True, "doubts": [],
        "sink": {"sink": "loss", "name": "loss", "step": 2, "op_id": 23},
        "path": [
            entry("aten::exp", 19, "nan 1 of 6"),
            entry("aten::log", 20, "nan 1 of 6"),
            entry("aten::mul", 21, "nan 1 of 6"),
            entry("aten::mse_loss", 23, "nan 1 of 6"),
        ],
    }  # fmt: skip
