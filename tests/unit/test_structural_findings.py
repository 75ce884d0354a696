"""Findings about how a program is built or run: listed, told, and no part of the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tracelens as tl
from trace_builder import TraceBuilder, training_run
from tracelens.analysis.report import render
from tracelens.diagnosis import diagnose
from tracelens.findings import Findings
from tracelens.storage.reader import TraceReader, open_trace

RETRACE: dict[str, Any] = {
    "rule": "retrace",
    "verdict": "structural",
    "severity": "warning",
    "message": "f was traced again: shape of argument x is (4, 3), was (2, 3)",
    "advice": "give x one shape",
    "step": 0,
    "source": {"file": "train.py", "line": 3, "function": "step", "code": "f(x)"},
}


def opened(trace: TraceBuilder) -> TraceReader:
    trace.event("finding", **RETRACE)
    return open_trace(trace.close())


def test_a_session_stores_one_without_warning_or_raising(tmp_path: Path) -> None:
    with tl.trace(tmp_path / "t.tltrace", quiet=True, nonfinite="raise") as session:
        session.report_finding("retrace", "again", severity="warning", traces=3)
    (found,) = tl.load(tmp_path / "t.tltrace").findings
    assert (found["rule"], found["verdict"], found["message"]) == ("retrace", "structural", "again")
    assert (found["severity"], found["step"], found["traces"]) == ("warning", 0, 3)
    assert session.judge.findings == []


@pytest.mark.parametrize(("hit", "verdict"), [(False, "clean"), (True, "non-finite")])
def test_the_verdict_is_that_of_the_values(tmp_path: Path, hit: bool, verdict: str) -> None:
    with opened(training_run(tmp_path / "t.tltrace", hit=hit)) as reader:
        told = diagnose(reader)
        listed = Findings(reader, 0).all()
    assert told["verdict"] == verdict
    assert "retrace" not in {each["rule"] for each in told["findings"]}
    assert "retrace" in {each["rule"] for each in listed}
    assert len(listed) == 1 + hit


def test_the_report_tells_what_where_and_what_to_do() -> None:
    assert render(RETRACE).splitlines() == [
        "RETRACE  step 0",
        "  what      f was traced again: shape of argument x is (4, 3), was (2, 3)",
        "  at        train.py:3 in step",
        "              f(x)",
        "  fix       give x one shape",
    ]
