"""``tl.load``: a trace as sequences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tracelens as tl
from tracelens.errors import TraceError
from tracelens.loaded import Trace
from tracelens.storage import reader as reader_module
from tracelens.storage.writer import ShardWriter

sys.path.insert(0, str(Path(__file__).parents[1]))
from trace_builder import training_run


@pytest.fixture(params=["closed", "live"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trace]:
    built = training_run(tmp_path / "run.tltrace")
    if request.param == "closed":
        built.close()
    with tl.load(built.path) as loaded:
        yield loaded


def test_ops_are_a_sequence(trace: Trace) -> None:
    assert len(trace.ops) == 24
    assert [op.op_id for op in trace.ops] == list(range(24))
    assert (trace.ops[0].op_id, trace.ops[-1].op_id) == (0, 23)
    for index in (24, -25):
        with pytest.raises(IndexError):
            trace.ops[index]


@pytest.mark.parametrize(
    "chosen",
    [slice(None), slice(2, 5), slice(-3, None), slice(20, 99), slice(1, 20, 6), slice(5, 2),
     slice(None, None, -1), slice(20, 3, -4), slice(3, 20, -1)],
)  # fmt: skip
def test_slices_are_those_of_a_list(trace: Trace, chosen: slice) -> None:
    assert [op.op_id for op in trace.ops[chosen]] == list(range(24))[chosen]


def test_ops_of_one_step_are_a_sequence_too(trace: Trace) -> None:
    step = trace.ops.of(step=1)
    assert len(step) == 8
    assert [op.op_id for op in step] == list(range(8, 16))
    assert step[2].op_id == 10
    assert trace.ops.by_id(19).name == "aten::exp"
    assert trace.ops.by_id(99) is None


def test_iterating_holds_a_page_at_a_time(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_PAGE", 5)
    sizes = []
    read = trace.reader.ops

    def ops(**options):
        page = read(**options)
        sizes.append(len(page))
        return page

    monkeypatch.setattr(trace.reader, "ops", ops)
    assert len(list(trace.ops)) == 24
    assert sizes == [5, 5, 5, 5, 4, 0]


def test_steps_sinks_and_findings_are_lists_of_dicts(trace: Trace) -> None:
    assert [step["scalars"]["loss"] for step in trace.steps] == [1.0, 0.5, 1 / 3]
    assert trace.sinks[0]["name"] == "loss"
    assert list(trace.findings) == []
    assert trace.sql("SELECT count(*) FROM ops") == [(24,)]
    assert trace.health().ok


def test_reprs_are_short(trace: Trace) -> None:
    assert repr(trace).endswith("run.tltrace': 1 rank>")
    assert repr(trace.ops) == "<Ops of rank 0: 24>"
    assert repr(trace.ops.of(step=1)) == "<Ops of rank 0, step 1: 8>"


def test_a_closed_trace_can_be_closed_again(trace: Trace) -> None:
    trace.sql("SELECT 1")
    trace.close()
    trace.close()


@pytest.mark.parametrize(
    ("dtype", "data", "expected"),
    [
        ("float32", b"\0\0\x80\x3f\0\0\0\x40", [1.0, 2.0]),
        ("bfloat16", b"\x80\x3f\0\x40", [1.0, 2.0]),
        ("int64", (7).to_bytes(8, "little") * 2, [7, 7]),
        ("bool", b"\1\0", [True, False]),
    ],
)
def test_stored_tensors_are_mapped(
    tmp_path: Path, dtype: str, data: bytes, expected: list[object]
) -> None:
    writer = ShardWriter(tmp_path / "run.tltrace", mode="stream", ring_bytes=1 << 16)
    for step in (0, 1):
        assert writer.tensor(16, "logits", data, dtype, [2], step, 1)
    with tl.load(tmp_path / "run.tltrace") as live:
        assert live.tensor("logits", step=0).tolist() == expected
    writer.close()
    with tl.load(tmp_path / "run.tltrace") as closed:
        assert closed.tensor("logits").tolist() == expected
        assert closed.tensor("logits", step=1)[1:].tolist() == expected[1:]
        with pytest.raises(TraceError, match=r"no tensor 'x'.*logits"):
            closed.tensor("x")
        with pytest.raises(TraceError, match="not stored in step 9"):
            closed.tensor("logits", step=9)
