"""The examples, as a reader of the README runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECONDS = 300


@pytest.mark.slow
def test_the_keras_example_is_recorded_unchanged_and_its_loss_is_blamed(tmp_path: Path) -> None:
    trace = tmp_path / "keras.tltrace"
    program = EXAMPLES / "keras_digits.py"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    tracelens = [sys.executable, "-m", "tracelens"]
    run = subprocess.run(
        [*tracelens, "run", "-o", trace, program],
        capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "loss nan" in run.stdout
    why = subprocess.run(
        [*tracelens, "why", "--json", trace], capture_output=True, text=True, timeout=SECONDS
    )
    assert why.returncode == 1, why.stderr
    cause = json.loads(why.stdout)["first_cause"]
    marked = next(
        number
        for number, text in enumerate(program.read_text(encoding="utf-8").splitlines(), 1)
        if "tf.math.log" in text
    )
    assert (cause["op"], cause["kind"]) == ("Log", "inf")
    assert (Path(cause["source"]["file"]).name, cause["source"]["line"]) == (program.name, marked)


@pytest.mark.slow
def test_the_demonstration_ends_with_the_cause_of_its_nan(tmp_path: Path) -> None:
    demo = subprocess.run(
        [sys.executable, EXAMPLES / "digits_nan.py"],
        capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path,
    )  # fmt: skip
    assert demo.returncode == 0, demo.stderr[-2000:]
    assert "targets * torch.log(probabilities)" in demo.stdout
    assert "The trace is in demo-out" in demo.stdout
