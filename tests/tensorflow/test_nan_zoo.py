"""Every TensorFlow program of the nan zoo against its known cause."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ZOO = HERE.parent.parent / "fixtures" / "nan_zoo"
sys.path.insert(0, str(ZOO))
import zoo  # noqa: E402

CASES = zoo.load("tensorflow")
BUGS = [case for case in CASES if case.is_bug]
RIGHT = [case for case in CASES if not case.is_bug]
GROUPS = ("", "devices", "v1")
"""What programs need: two devices and TensorFlow 1's behaviour are set once in a process."""
SECONDS = 900

Results = dict[str, dict[str, Any]]


def run_all(script: str, *arguments: Path) -> Results:
    """Run all programs in one process a group; what the script printed, by program."""
    found: Results = {}
    for needs in GROUPS:
        programs = [case.path for case in CASES if case.needs == needs]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", HERE / script, *arguments, *programs],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        for line in done.stdout.splitlines():
            record = json.loads(line)
            found[record["program"]] = record
        assert done.returncode == 0, done.stderr[-2000:]
    return found


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[zoo.Case], dict[str, Any]]:
    results: Results = {}

    def why_of(case: zoo.Case) -> dict[str, Any]:
        if not results:
            results.update(run_all("zoo_runner.py", tmp_path_factory.mktemp("zoo")))
        record = results[str(case.path)]
        assert "crash" not in record, record.get("crash")
        assert record["failed"] == []
        why: dict[str, Any] = record["why"]
        return why

    return why_of


@pytest.fixture(scope="module")
def verdicts() -> Callable[[zoo.Case], dict[str, Any] | None]:
    results: Results = {}

    def verdict_of(case: zoo.Case) -> dict[str, Any] | None:
        if not results:
            results.update(run_all("zoo_oracle.py"))
        verdict: dict[str, Any] | None = results[str(case.path)]["verdict"]
        return verdict

    return verdict_of


def check_cause(case: zoo.Case, why: dict[str, Any]) -> None:
    """Compare a verdict with the truth; the message shows both."""
    cause = why["first_cause"]
    shown = json.dumps(cause and {k: cause[k] for k in ("kind", "op", "phase", "step", "source")})
    story = f"{case.name}: {case.why}\n  told {why['verdict']}: {shown}"
    assert why["verdict"] == "non-finite", story
    assert cause and cause["source"], story
    line = zoo.place(cause["source"]["file"], cause["source"]["line"])
    assert line in case.culprits + case.also, f"{story}\n  line {line}, wanted {case.culprits}"
    assert cause["kind"] in case.kinds, f"{story}\n  wanted {case.kinds}"
    assert cause["phase"] in case.phases, f"{story}\n  wanted {case.phases}"
    assert re.search(case.op, cause["op"]), f"{story}\n  wanted op {case.op}"
    if case.step is not None:
        assert cause["step"] == case.step, f"{story}\n  wanted step {case.step}"
    if case.module:
        assert cause["module"] == case.module, f"{story}\n  wanted module {case.module}"


@pytest.mark.slow
@pytest.mark.parametrize("case", BUGS, ids=lambda case: case.name)
def test_the_bug_is_found_at_its_line(
    case: zoo.Case, observed: Callable[[zoo.Case], dict[str, Any]]
) -> None:
    check_cause(case, observed(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", BUGS, ids=lambda case: case.name)
def test_the_report_speaks_tensorflow(
    case: zoo.Case, observed: Callable[[zoo.Case], dict[str, Any]]
) -> None:
    cause = observed(case)["first_cause"]
    words = f"{cause['why']} {cause['fix']}"
    foreign = re.findall(
        r"torch|clamp|\bdim\b|\.float\(\)|masked_fill|autocast|DataLoader|randn", words
    )
    assert foreign == [], words


@pytest.mark.slow
@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_a_correct_program_raises_no_alarm(
    case: zoo.Case, observed: Callable[[zoo.Case], dict[str, Any]]
) -> None:
    why = observed(case)
    # At guard level a value that reached nothing is not looked for.
    accepted = ("masked", "clean") if case.verdict == "masked" else ("clean",)
    assert why["verdict"] in accepted, f"{case.why}\n{json.dumps(why, indent=1)[:3000]}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_oracle_agrees_with_the_label(
    case: zoo.Case, verdicts: Callable[[zoo.Case], dict[str, Any] | None]
) -> None:
    """The labels themselves: a second, slow judge that shares no code with the product."""
    verdict = verdicts(case)
    if not case.is_bug:
        assert verdict is None, verdict
        return
    assert verdict is not None
    assert verdict["line"] in case.culprits + case.also, verdict
    assert verdict["kind"] in case.kinds, verdict
    assert verdict["phase"] in case.phases, verdict
    assert case.step is None or verdict["step"] >= case.step, verdict  # a sink may come later


def test_the_tensorflow_zoo_is_as_large_as_promised() -> None:
    assert len(BUGS) >= 25
    assert len(RIGHT) >= 8
    assert all(case.culprits for case in BUGS)
    assert {case.path for case in CASES} == set((ZOO / "tensorflow").glob("*/*.py"))
    names = " ".join(case.name for case in BUGS)
    for kind, least in {"session_": 6, "xla_": 2, "while_": 2, "fit_": 5, "eager_": 3}.items():
        assert names.count(kind) >= least, kind
