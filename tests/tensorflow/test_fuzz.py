"""A small run of the fuzz: no NaN or Inf that reaches a result goes unseen."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TRIALS = 25


@pytest.fixture(scope="module")
def tf_fuzz_checks() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "tf_fuzz_checks.py"
    spec = importlib.util.spec_from_file_location("tf_fuzz_checks", path)
    assert spec is not None and spec.loader is not None
    import sys

    module = sys.modules["tf_fuzz_checks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("use_ops", (True, False))
def test_no_live_poison_goes_unseen(tf_fuzz_checks: ModuleType, use_ops: bool) -> None:
    names = ("control flow", "arithmetic", "recurrent")
    counts, misses = tf_fuzz_checks.fuzz(TRIALS, use_ops=use_ops, seed=7, names=names)
    assert misses == []
    assert counts["live"] >= TRIALS // 2
