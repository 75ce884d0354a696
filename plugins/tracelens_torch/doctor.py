"""What `tracelens doctor` says of PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tracelens_torch.native import build

if TYPE_CHECKING:
    from tracelens_torch.engines import Engine


def describe(engine: Engine | None) -> dict[str, Any]:
    """Return the engine in use (or that would be), why, and how to get a better one.

    The native observer is built if it is not yet, so that the answer is true.
    """
    facts: dict[str, Any] = {
        "framework": "torch",
        "version": torch.__version__,
        "devices": ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))],
        "compiler": build.compiler() or "none found",
        "cache": str(build.cache_directory()),
    }
    if engine is not None:
        return {**facts, "engine": engine.name, "why": "in use by the running session", "fix": ""}
    try:
        build.load()
    except build.BuildError as error:
        return {
            **facts,
            "engine": "python",
            "why": f"the native observer is not available: {error}",
            "fix": "install a C++ compiler (g++ or clang++) and Python's headers, then run "
            "`tracelens doctor` again",
        }
    why = "the C++ observer is compiled for this torch and loads"
    return {**facts, "engine": "native", "why": why, "fix": ""}
