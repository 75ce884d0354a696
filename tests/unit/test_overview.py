"""The summary of traces whose ops were recorded in different ways."""

from __future__ import annotations

from pathlib import Path

from trace_builder import TraceBuilder
from tracelens.overview import overview
from tracelens.storage.reader import open_trace


def test_ops_without_a_duration_are_left_out_of_the_rankings_of_time(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "t.tltrace")
    trace.op("Timed", duration_ns=300)
    trace.op("Untimed", duration_ns=-1)
    with open_trace(trace.close()) as reader:
        found = overview(reader)
    assert [(row["name"], row["share"]) for row in found["time"]["op"]] == [("Timed", 1.0)]
    assert found["ops"]["recorded"] == 2


def test_findings_about_structure_are_listed_with_the_others(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "t.tltrace")
    trace.event(
        "finding", rule="retrace", verdict="structural", severity="info", message="again", step=0
    )
    with open_trace(trace.close()) as reader:
        found = overview(reader)
    assert [(row["rule"], row["message"]) for row in found["findings"]] == [("retrace", "again")]
