"""Ring records read back as ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tracelens.analysis.cause import explain
from tracelens.analysis.live import RingOps
from tracelens.analysis.source import OpSource
from tracelens.events import OpFlag, Phase, RecordKind, Role
from tracelens.storage.format import RECORD

STRINGS: dict[int, Any] = {
    1: {"op": "aten::mm", "module": "net.0", "file": "train.py", "line": 7, "code": "h = x @ w"},
    2: {"op": "aten::log", "module": "net.1", "file": "train.py", "line": 8, "function": "f"},
    3: {"in": [["float32", [2, 3], "cpu"]], "out": [["float32", [2, 3], "cpu"]]},
    4: ["float32", [2, 3], "cpu"],
    5: {"op": "aten::cat"},
}


def record(kind: RecordKind, op_id: int, **fields: Any) -> np.ndarray:
    row = np.zeros(1, RECORD)
    for name in ("parent_id", "fwd_op_id", "duration_ns", "zero", "in_ids"):
        row[name] = -1
    row["kind"], row["op_id"], row["seq"] = kind, op_id, 1
    for name, value in fields.items():
        row[name] = value
    return row


def ids(*values: int) -> list[int]:
    return [*values, -1, -1, -1, -1][:4]


@pytest.fixture
def ring() -> RingOps:
    hit = OpFlag.HIT | OpFlag.CHECKED
    forward = {"phase": Phase.FORWARD, "step": 4}
    rows = [
        record(RecordKind.OP, 7, site_id=1, n_in=2, n_out=1, value_id=112, **forward),
        record(
            RecordKind.OP,
            9,
            site_id=2,
            flags=hit,
            n_in=1,
            n_out=1,
            in_ids=ids(112),
            value_id=144,
            stat_level=1,
            numel=6,
            nan=2,
            **forward,
        ),
        record(
            RecordKind.STAT,
            9,
            layout_id=4,
            n_in=Role.INPUT,
            stat_level=1,
            numel=6,
            vmin=-0.5,
            vmax=2,
            value_id=112,
        ),
        record(
            RecordKind.STAT,
            9,
            layout_id=4,
            n_in=Role.OUTPUT,
            stat_level=1,
            numel=6,
            nan=2,
            vmin=0,
            vmax=1,
            in_ids=ids(1, 5),
            value_id=144,
        ),
        record(
            RecordKind.OP, 12, site_id=5, n_in=6, n_out=1, in_ids=[144, -1, 112, 112], **forward
        ),
        record(RecordKind.INPUTS, 12, in_ids=ids(144, 112)),
    ]
    return RingOps(np.concatenate(rows), lambda string_id: STRINGS.get(string_id), rank=3)


def test_the_ring_is_an_op_source(ring: RingOps) -> None:
    assert isinstance(ring, OpSource)


def test_an_op_is_put_together_from_its_records(ring: RingOps) -> None:
    op = ring.op(9)
    assert op is not None
    assert (op.name, op.module, op.step, op.phase, op.rank) == (
        "aten::log",
        "net.1",
        4,
        Phase.FORWARD,
        3,
    )
    assert op.source is not None
    assert (op.source.line, op.source.function) == (8, "f")
    assert op.outputs[0].first_bad == (1, 5)
    assert op.outputs[0].shape == (2, 3)
    assert op.inputs[0].stats is not None
    assert (op.inputs[0].stats.vmin, op.inputs[0].stats.vmax) == (-0.5, 2.0)


def test_more_than_four_inputs_are_joined_in_order(ring: RingOps) -> None:
    op = ring.op(12)
    assert op is not None
    assert [tensor.value_id for tensor in op.inputs] == [144, -1, 112, 112, 144, 112]


def test_hits_are_found(ring: RingOps) -> None:
    assert list(ring.hits(4)) == [9]
    assert list(ring.hits(5)) == []
    assert list(ring.hits()) == [9]


def test_an_op_that_was_overwritten_is_unknown(ring: RingOps) -> None:
    assert ring.op(8) is None
    assert ring.op(10**12) is None


def test_an_empty_ring_answers(ring: RingOps) -> None:
    empty = RingOps(np.zeros(0, RECORD), lambda string_id: None)
    assert empty.op(0) is None
    assert list(empty.hits()) == []


def test_a_finding_is_made_straight_from_the_ring(ring: RingOps) -> None:
    sink = {"t": "sink", "sink": "loss", "step": 4, "op_id": 9, "value_id": 144}
    first = explain(ring, {**sink, "stats": {"numel": 6, "nan": 2}})["first_cause"]
    assert first["op"] == "aten::log"
    assert first["outputs"][0]["first_bad"] == [[0, 1], [1, 2]]
    assert "input min -0.5" in first["why"]


def test_strings_lost_with_a_killed_process_leave_the_op_readable(ring: RingOps) -> None:
    lost = RingOps(ring._records, lambda string_id: None)
    op = lost.op(9)
    assert op is not None
    assert op.source is None
    assert explain(lost, None)["first_cause"]["source"] is None
