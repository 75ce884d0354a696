"""Every program of the nan zoo, under every engine, against its known cause."""

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
RUNNER = HERE / "zoo_runner.py"
ZOO = HERE.parent.parent / "fixtures" / "nan_zoo"
sys.path.insert(0, str(ZOO))
import zoo  # noqa: E402

CASES = zoo.load()
BUGS = [case for case in CASES if case.is_bug]
RIGHT = [case for case in CASES if not case.is_bug]
BY_COMMAND = ["siamese_sqrt_distance", "data_nan_feature_workers", "lightning_style"]
ENGINES = ["native", "python"]
SECONDS = 600

Results = dict[str, dict[str, Any]]


def programs(needs: str) -> list[str]:
    return [str(case.path) for case in CASES if case.needs == needs]


def observe_all(engine: str, folder: Path) -> Results:
    """Run all programs under one engine, those with compiled regions in a process of their own."""
    found: Results = {}
    for needs in ("", "compile"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", RUNNER, engine, folder, *programs(needs)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for line in done.stdout.splitlines():
            record = json.loads(line)
            found[record["program"]] = record
        assert done.returncode == 0, done.stderr[-2000:]
    return found


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    cache: dict[str, Results] = {}

    def run(engine: str) -> Results:
        if engine not in cache:
            cache[engine] = observe_all(engine, tmp_path_factory.mktemp(f"zoo_{engine}"))
        return cache[engine]

    return run


def why_of(record: dict[str, Any]) -> dict[str, Any]:
    assert "crash" not in record, record.get("crash")
    why: dict[str, Any] = record["why"]
    return why


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
    if case.sinks:
        assert why["sink"]["sink"] in case.sinks, f"{story}\n  first seen {why['sink']}"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", BUGS, ids=lambda case: case.name)
def test_the_bug_is_found_at_its_line(
    case: zoo.Case, engine: str, observed: Callable[[str], Results]
) -> None:
    check_cause(case, why_of(observed(engine)[str(case.path)]))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_a_correct_program_raises_no_alarm(
    case: zoo.Case, engine: str, observed: Callable[[str], Results]
) -> None:
    why = why_of(observed(engine)[str(case.path)])
    assert why["verdict"] in ("masked", "clean"), f"{case.why}\n{json.dumps(why, indent=1)}"
    if case.verdict == "clean":
        assert why["verdict"] == "clean", f"{case.why}\n{json.dumps(why['findings'])[:2000]}"
    elif engine == "native":  # the other engine does not see what torch.tensor() is given
        assert why["verdict"] == "masked", case.why
    if why["verdict"] == "masked" and case.culprits:
        source = why["first_cause"]["source"]
        assert zoo.place(source["file"], source["line"]) in case.culprits


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_COMMAND)
def test_the_commands_tell_the_same(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    trace = tmp_path / "run.tltrace"
    tracelens = [sys.executable, "-m", "tracelens"]
    plain = subprocess.run(
        [sys.executable, case.path], capture_output=True, text=True, timeout=SECONDS
    )
    run = subprocess.run(
        [*tracelens, "run", "-o", trace, case.path], capture_output=True, text=True, timeout=SECONDS
    )
    assert (run.returncode, run.stdout) == (plain.returncode, plain.stdout)
    why = subprocess.run(
        [*tracelens, "why", "--json", trace], capture_output=True, text=True, timeout=SECONDS
    )
    assert why.returncode == 1
    check_cause(case, json.loads(why.stdout))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.needs], ids=lambda case: case.name
)
def test_the_oracle_agrees_with_the_label(case: zoo.Case) -> None:
    """The labels themselves: a second, slow judge that shares no code with the product."""
    from zoo_oracle import judge

    verdict, _, _ = judge(case.path, zoo.ROOT)
    if not case.is_bug:
        assert verdict is None, verdict
        return
    assert verdict is not None
    assert verdict.line in case.culprits + case.also, verdict
    assert verdict.kind in case.kinds, verdict
    assert case.step is None or verdict.step >= case.step, verdict  # a sink may come later


def test_the_zoo_is_as_large_as_promised() -> None:
    assert len(BUGS) >= 36
    assert len(RIGHT) >= 14
    assert all(case.culprits for case in BUGS)
    listed = {case.path for case in CASES}
    found = set(ZOO.glob("*/*.py")) | set(ZOO.glob("*/*/train.py"))
    assert found == listed
