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


TRAININGS = {
    "digits_cnn.py": ("% of the digits are read right", "digits-cnn.tltrace", 87),
    "keras_cnn.py": ("% of the digits are read right", "keras-cnn.tltrace", 87),
    "char_transformer.py": ("it writes: ", "char-transformer.tltrace", 60),
    "ddp.py": ("rank 1  loss", "ddp.tltrace", 24),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_an_example_trains_under_guard_and_its_trace_is_clean(name: str, tmp_path: Path) -> None:
    last_words, trace, steps = TRAININGS[name]
    done = _python(EXAMPLES / name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert last_words in done.stdout
    verdict = _python("-m", "tracelens", "why", "--json", trace, cwd=tmp_path)
    assert verdict.returncode == 0, verdict.stdout
    summary = _python("-m", "tracelens", "query", "--json", trace, "SELECT count(loss) FROM steps",
                      cwd=tmp_path)  # fmt: skip
    assert json.loads(summary.stdout)["rows"] == [[steps]]


@pytest.mark.slow
def test_a_blank_image_is_blamed_on_the_line_that_divides_by_its_deviation(tmp_path: Path) -> None:
    done = _python(EXAMPLES / "digits_cnn.py", "--bug", cwd=tmp_path)
    assert done.returncode == 1
    assert "tracelens.errors.NonFiniteError: NaN" in done.stderr
    assert "return (pixels - mean) / deviation" in done.stderr


@pytest.mark.slow
def test_a_session_that_diverges_is_told_so(tmp_path: Path) -> None:
    program = EXAMPLES / "tf1_regression.py"
    run = ("-m", "tracelens", "run", "-q", "-o")
    good = _python(*run, "good.tltrace", program, cwd=tmp_path)
    assert "y = 3.00x -1.00" in good.stdout, good.stderr[-2000:]
    assert _python("-m", "tracelens", "why", "good.tltrace", cwd=tmp_path).returncode == 0
    _python(*run, "bad.tltrace", program, "--bug", cwd=tmp_path)
    why = _python("-m", "tracelens", "why", "bad.tltrace", cwd=tmp_path)
    assert why.returncode == 1
    assert "training had diverged" in why.stdout.replace("\n            ", " ")


def _python(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=cwd,
    )  # fmt: skip
