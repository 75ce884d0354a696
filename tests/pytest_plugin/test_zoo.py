"""The nan zoo as tests under ``--nan=fail``: each bug fails, each correct program passes.

Here all programs of PyTorch that share a process and some of TensorFlow; `benchmarks/pytest_zoo.py`
runs every one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from inner import Run, in_subprocess

HERE = Path(__file__).parent
ZOO = HERE.parents[1] / "fixtures" / "nan_zoo"
sys.path.insert(0, str(ZOO))
import zoo  # noqa: E402

SOME = (
    "eager_where_trap eager_csv_missing_value custom_gradient_normalise function_cosine_nested "
    "while_newton_iteration fit_loss_by_hand fit_dataset_with_nan predict_zero_temperature "
    "session_sqrt_gradient causal_attention_mask double_where_log loss_scale_warmup "
    "beam_search_scores divide_no_nan"
)
"""TensorFlow's: eager, traced, Keras, sessions, and correct ones."""


def run_zoo(directory: Path, framework: str, names: str = "") -> Run:
    return in_subprocess(
        directory,
        "--nan=fail",
        "--noconftest",
        "--rootdir=.",
        "-c/dev/null",
        "--tb=line",
        HERE / "zoo_programs.py",
        ZOO_FRAMEWORK=framework,
        ZOO_NAMES=",".join(names.split()),
        OMP_NUM_THREADS="1",
    )


def judge(run: Run, framework: str) -> None:
    told = {name.removeprefix("test_program[")[:-1]: each for name, each in run.tests.items()}
    cases = {case.name: case for case in zoo.load(framework) if case.name in told}
    assert set(cases) == set(told) and cases, run.text[-2000:]
    wrong = {
        name: (case.verdict, told[name].outcome, told[name].first)
        for name, case in cases.items()
        if told[name].outcome != ("failed" if case.is_bug else "passed")
    }
    assert wrong == {}
    named = [told[name].first for name, case in cases.items() if case.is_bug]
    # A program that raises by itself, having asked, keeps its own failure.
    assert sum(bool(sentence) for sentence in named) >= len(named) - 1
    assert not any("tracelens.not_judged" in each.properties for each in told.values())


@pytest.mark.slow
def test_each_bug_of_pytorchs_zoo_fails_and_each_correct_program_passes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    judge(run_zoo(tmp_path, "torch"), "torch")


@pytest.mark.slow
def test_bugs_of_tensorflows_zoo_fail_and_correct_programs_pass(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    judge(run_zoo(tmp_path, "tensorflow", SOME), "tensorflow")


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_suite_of_correct_models_raises_no_alarm(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(framework)
    suite = HERE / "suite" / f"suite_{framework}.py"
    run = in_subprocess(tmp_path, "--nan=fail", "--noconftest", "--rootdir=.", "-c/dev/null", suite)
    assert run.status == 0, run.text[-3000:]
    assert "tracelens" not in run.text
