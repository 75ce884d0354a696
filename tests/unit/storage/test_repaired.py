"""A repaired trace reads as the killed one did, and as one that was closed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from trace_builder import training_run
from tracelens.events import Op
from tracelens.storage.reader import TraceReader, open_trace
from tracelens.storage.recovery import repair
from tracelens.storage.verify import verify

TABLES = ("ops", "stats", "steps", "events", "sources", "tensors")


def told(reader: TraceReader) -> dict[str, Any]:
    """Return everything a trace tells of what was recorded."""
    return {
        "ops": [plain(op) for op in reader.iter_ops()],
        "hits": reader.hits(),
        "steps": reader.steps(),
        "events": sorted(reader.events(), key=repr),
        "consumers": reader.consumers(48),
        "rows": {name: reader.sql(f"SELECT * FROM {name} ORDER BY ALL") for name in TABLES},
    }


def plain(op: Op) -> Op:
    """Leave out what segments do not keep: devices, but the first output's and measured ones."""
    inputs = tuple(dataclasses.replace(tensor, device="") for tensor in op.inputs)
    outputs = tuple(dataclasses.replace(tensor, device="") for tensor in op.outputs)
    return dataclasses.replace(op, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize("mode", ["stream", "flight"])
@pytest.mark.parametrize("partly_sealed", [False, True])
def test_a_repaired_trace_reads_equal(tmp_path: Path, mode: str, partly_sealed: bool) -> None:
    trace = training_run(tmp_path / "killed.tltrace", mode=mode)
    if partly_sealed and mode == "stream":
        trace.seal()
        for _ in range(4):
            trace.op("aten::add", step=3)
        trace.step(3)
    path = trace.kill()
    with open_trace(path) as reader:
        before = told(reader)
        assert reader.health().of_kind("dead_writer")
    repair(path)
    with open_trace(path) as reader:
        after = told(reader)
        assert reader.health().ok
    for key, value in before.items():
        assert after[key] == value, key
    assert verify(path) == []


def test_holes_stay_counted_after_repair(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    trace.hole()
    trace.op("aten::add", step=3)
    path = trace.kill()
    with open_trace(path) as reader:
        (holes,) = reader.health().of_kind("holes")
        ids = [op.op_id for op in reader.iter_ops()]
    repair(path)
    with open_trace(path) as reader:
        (dropped,) = reader.health().of_kind("dropped")
        assert dropped.count == holes.count == 1
        assert [op.op_id for op in reader.iter_ops()] == ids


def test_repairing_twice_changes_nothing(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").kill()
    repair(path)
    with open_trace(path) as reader:
        once = told(reader)
    repair(path)
    with open_trace(path) as reader:
        assert told(reader) == once
