"""Exports: CSV, npz and Perfetto hold what the trace holds, exactly."""

from __future__ import annotations

import csv as csv_module
import json
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trace_builder import TraceBuilder, training_run
from tracelens.convert import csv, npz, perfetto
from tracelens.convert._lanes import Lanes
from tracelens.errors import ConfigError, TraceLensError
from tracelens.storage.reader import TraceReader, open_trace
from tracelens.storage.tables import TABLES


@pytest.fixture(params=["closed", "live"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TraceReader]:
    trace = training_run(tmp_path / "run.tltrace")
    if request.param == "closed":
        trace.close()
    with open_trace(trace.path) as opened:
        yield opened


def test_csv_holds_every_op_and_column(reader: TraceReader, tmp_path: Path) -> None:
    assert csv.export(reader, tmp_path / "ops.csv") == 24
    with open(tmp_path / "ops.csv", newline="") as file:
        rows = list(csv_module.DictReader(file))
    assert list(rows[0]) == [column.name for column in TABLES["ops"]]
    assert [int(row["op_id"]) for row in rows] == list(range(24))
    assert rows[19]["name"] == "aten::exp"
    assert rows[19]["nan_count"] == "1"
    assert rows[0]["parent_id"] == ""
    assert json.loads(rows[5]["in_ids"]) == [0, 16, 48, 64, 0, 16]


def test_csv_of_some_steps_of_another_table(reader: TraceReader, tmp_path: Path) -> None:
    assert csv.export(reader, tmp_path / "steps.csv", table="steps", first_step=1, last_step=1) == 1
    assert csv.export(reader, tmp_path / "part.csv", last_step=0) == 8
    with pytest.raises(ConfigError, match="no table 'nodes'"):
        csv.export(reader, tmp_path / "x.csv", table="nodes")


def test_npz_opens_without_pickle(reader: TraceReader, tmp_path: Path) -> None:
    npz.export(reader, tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as arrays:
        names = arrays["ops/name.values"][arrays["ops/name"]]
        assert names[19] == "aten::exp"
        assert arrays["ops/op_id"].tolist() == list(range(24))
        assert arrays["ops/parent_id"][0] == npz.NULL_INT
        assert arrays["ops/vmin"].dtype == np.float32
        start, stop = arrays["ops/in_ids.offsets"][5:7]
        assert arrays["ops/in_ids"][start:stop].tolist() == [0, 16, 48, 64, 0, 16]
        assert arrays["steps/loss"].tolist() == [1.0, 0.5, 1 / 3]
        assert arrays["stats/role.values"].tolist() == ["in", "out"]


def test_npz_of_one_step(reader: TraceReader, tmp_path: Path) -> None:
    npz.export(reader, tmp_path / "run.npz", first_step=1, last_step=1)
    with np.load(tmp_path / "run.npz", allow_pickle=False) as arrays:
        assert arrays["ops/op_id"].tolist() == list(range(8, 16))
        assert arrays["ops/step"].tolist() == [1] * 8


@pytest.mark.parametrize("export", [csv.export, npz.export, perfetto.export])
def test_an_existing_file_is_kept_unless_forced(
    reader: TraceReader, tmp_path: Path, export: Any
) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    with pytest.raises(ConfigError, match="already exists"):
        export(reader, out)
    assert out.read_text() == "precious"
    assert export(reader, out, force=True) > 0
    assert out.stat().st_size > 100
    with pytest.raises(ConfigError, match="is a directory"):
        export(reader, tmp_path, force=True)


@pytest.mark.parametrize("export", [csv.export, npz.export, perfetto.export])
def test_a_place_that_cannot_be_written_is_one_line(
    reader: TraceReader, tmp_path: Path, export: Any
) -> None:
    with pytest.raises(TraceLensError, match="cannot write") as caught:
        export(reader, tmp_path / "no" / "such" / "folder")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run.tltrace"]


def load(path: Path) -> list[dict[str, Any]]:
    """Parse strictly: no NaN, and numbers as they are written."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    document = json.loads(path.read_text(), parse_float=Decimal, parse_constant=refuse)
    assert isinstance(document["traceEvents"], list)
    return document["traceEvents"]


def test_perfetto_has_processes_threads_slices_and_marks(
    reader: TraceReader, tmp_path: Path
) -> None:
    assert perfetto.export(reader, tmp_path / "run.json") == 24
    events = load(tmp_path / "run.json")
    for event in events:
        assert event["ph"] in {"M", "X", "i", "s", "f"}
        assert isinstance(event["pid"], int)
        assert event["pid"] > 0
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "i":
            assert event["s"] in {"t", "p", "g"}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(names.values()) == {"steps", "findings", "thread 77"}
    slices = [event for event in events if event["ph"] == "X"]
    assert {(event["pid"], event["tid"]) for event in slices} <= set(names)
    op = next(event for event in slices if event["args"].get("op_id") == 19)
    assert (op["name"], op["cat"]) == ("aten::exp", "forward")
    assert (op["ts"], op["dur"]) == (Decimal("19.000"), Decimal("0.900"))
    assert op["args"]["source"] == "train.py:13 in step"
    assert "nan=1" in op["args"]["outputs"][0]
    mark = next(event for event in events if event["ph"] == "i")
    assert mark["name"] == "non-finite loss loss"


def test_perfetto_times_are_exact(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    # A double cannot hold this many microseconds with three decimals.
    start = 9_007_199_254_740_993_001
    trace.op(start_ns=start, duration_ns=1)
    trace.op(start_ns=start + 2, duration_ns=0)
    trace.close()
    with open_trace(trace.path) as opened:
        perfetto.export(opened, tmp_path / "run.json")
    slices = [event for event in load(tmp_path / "run.json") if event["ph"] == "X"]
    # Times count from the first event, whose own time is told.
    assert [slice["ts"] * 1000 for slice in slices] == [0, 2]
    about = json.loads((tmp_path / "run.json").read_text())["otherData"]
    assert int(about["base_unix_ns"]) == 1_700_000_000 * 10**9 + start
    assert [slice["dur"] * 1000 for slice in slices] == [1, 0]


def test_perfetto_slices_of_a_track_never_cross(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    generator = np.random.default_rng(0)
    start = 0
    for _ in range(500):
        start += int(generator.integers(0, 50))
        trace.op(start_ns=start, duration_ns=int(generator.integers(0, 300)))
    trace.close()
    with open_trace(trace.path) as opened:
        perfetto.export(opened, tmp_path / "run.json")
    tracks = defaultdict(list)
    for event in load(tmp_path / "run.json"):
        if event["ph"] == "X":
            tracks[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert sum(map(len, tracks.values())) == 500
    assert len(tracks) > 1
    for slices in tracks.values():
        ends: list[Decimal] = []
        for begin, end in slices:
            while ends and ends[-1] <= begin:
                ends.pop()
            assert not ends or end <= ends[-1]
            ends.append(end)


def test_ops_without_a_duration_are_instants(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.op(duration_ns=-1)
    with open_trace(trace.path) as opened:
        perfetto.export(opened, tmp_path / "run.json")
    (mark,) = [event for event in load(tmp_path / "run.json") if event["ph"] == "i"]
    assert "dur" not in mark


def test_perfetto_keeps_ranks_apart_on_one_clock(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    training_run(path, world_size=2, steps=1).close()
    training_run(path, rank=1, world_size=2, steps=1, clock_offset_ns=5_000_001).close()
    with open_trace(path) as opened:
        perfetto.export(opened, tmp_path / "run.json")
    starts = {
        event["pid"]: event["ts"]
        for event in reversed(load(tmp_path / "run.json"))
        if event["ph"] == "X" and "op_id" in event["args"]
    }
    assert starts == {1: Decimal(0), 2: Decimal("5000.001")}


def test_a_scalar_that_json_does_not_know_is_written_by_name(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.step(0, loss=float("nan"))
    with open_trace(trace.path) as opened:
        perfetto.export(opened, tmp_path / "run.json")
    step = next(event for event in load(tmp_path / "run.json") if event["ph"] == "X")
    assert step["args"]["scalars"]["loss"].lower() == "nan"


def test_lanes_nest_follow_and_part() -> None:
    lanes = Lanes()
    assert lanes.place(0, 10) == 0
    assert lanes.place(2, 5) == 0
    assert lanes.place(4, 8) == 1
    assert lanes.place(5, 8) == 0
    assert lanes.place(10, 12) == 0
    assert lanes.place(9, 20) == 1
