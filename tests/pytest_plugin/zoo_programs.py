"""Every program of the nan zoo as a test; run by an inner pytest, not collected by the outer one.

``ZOO_FRAMEWORK`` names the table, ``ZOO_NEEDS`` the group of programs that share a process, and
``ZOO_NAMES`` (comma-separated) some of them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracelens.cli._program import Program

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures" / "nan_zoo"))
import zoo

FRAMEWORK = os.environ["ZOO_FRAMEWORK"]
NAMES = set(filter(None, os.environ.get("ZOO_NAMES", "").split(",")))
CASES = [
    case
    for case in zoo.load(FRAMEWORK)
    if case.needs == os.environ.get("ZOO_NEEDS", "") and (not NAMES or case.name in NAMES)
]


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """Undo what a program set for its whole process."""
    modules = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    if FRAMEWORK == "tensorflow":
        import tensorflow as tf

        tf.keras.backend.clear_session()
        tf.keras.mixed_precision.set_global_policy("float32")
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(zoo.ROOT)):
            del sys.modules[name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_program(case: zoo.Case) -> None:
    outcome = Program("script", str(case.path), ()).run()
    if outcome.error is not None and not isinstance(outcome.error, SystemExit):
        raise outcome.error
