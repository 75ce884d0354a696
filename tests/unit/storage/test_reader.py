"""Reading a trace back: what was recorded comes out, from segments and from the ring alike."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from trace_builder import TraceBuilder, training_run
from tracelens.errors import ConfigError, TraceError
from tracelens.events import Op, OpFlag, Phase, Role
from tracelens.storage import shardreader
from tracelens.storage.reader import TraceReader, open_trace
from tracelens.storage.records import RecordIndex

WAYS = ("small", "large", "live", "killed", "half_sealed")


@pytest.fixture(params=WAYS)
def reader(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TraceReader:
    """The same run, read in every way a trace can be read."""
    trace = training_run(tmp_path / "run.tltrace")
    if request.param == "large":
        monkeypatch.setattr(shardreader, "SMALL_ROWS", 0)
    if request.param in ("small", "large"):
        trace.close()
    elif request.param == "killed":
        trace.kill()
    elif request.param == "half_sealed":
        trace = training_run(tmp_path / "half.tltrace", steps=2, hit=False)
        trace.seal()
        monkeypatch.setattr(shardreader, "SMALL_ROWS", 0)
        trace = _again(trace)
    opened = open_trace(trace.path)
    request.addfinalizer(opened.close)
    return opened


def _again(trace: TraceBuilder) -> TraceBuilder:
    """Record the last step of ``training_run`` after two steps were sealed."""
    other = training_run(trace.path.parent / "other.tltrace")
    index_from = 16
    for op in _all_ops(other):
        if op.op_id >= index_from:
            trace.op(
                op.name,
                step=op.step,
                inputs=tuple(t.value_id for t in op.inputs),
                n_out=len(op.outputs),
                flags=op.flags,
                phase=op.phase,
                line=op.source.line if op.source else 0,
                parent=op.parent_id,
                fwd=op.fwd_op_id,
                stats={"nan": op.outputs[0].stats.nan} if op.outputs[0].stats else None,
            )
            if op.op_id == 19:
                trace.stat(19, Role.INPUT, 0, step=2, value_id=17 * 16)
                trace.stat(19, Role.OUTPUT, 0, step=2, value_id=19 * 16, nan=1, first_bad=(4,))
    trace.step(2, loss=1 / 3, n_ops=8)
    trace.event(
        "sink", sink="loss", name="loss", step=2, op_id=23, value_id=23 * 16, dtype="float32",
        shape=[], t_ns=23000,
    )  # fmt: skip
    return trace


def _all_ops(trace: TraceBuilder) -> list[Op]:
    with open_trace(trace.path) as opened:
        return list(opened.iter_ops())


def test_every_op_is_found_by_its_id(reader: TraceReader) -> None:
    ops = [reader.op(op_id) for op_id in range(24)]
    assert [op.op_id for op in ops if op] == list(range(24))
    assert reader.op(24) is None
    assert reader.op(-1) is None
    assert reader.op(3, rank=9) is None


def test_an_op_comes_back_with_all_that_was_recorded(reader: TraceReader) -> None:
    op = reader.op(19)
    assert op is not None
    assert (op.name, op.phase, op.step, op.module) == ("aten::exp", Phase.FORWARD, 2, "layers.0")
    assert op.source is not None
    assert (op.source.file, op.source.line, op.source.function) == ("train.py", 13, "step")
    assert op.source.code == "y = a @ b"
    assert op.flags == OpFlag.HIT | OpFlag.CHECKED
    assert (op.parent_id, op.fwd_op_id, op.tid) == (18, -1, 77)
    assert (op.start_ns, op.duration_ns) == (19000, 900)
    assert op.inputs[0].value_id == 17 * 16
    assert op.inputs[0].stats is not None
    assert op.inputs[0].stats.vmax == 3.0
    assert op.outputs[0].first_bad == (4,)
    assert op.outputs[0].shape == (2, 3)
    assert op.outputs[0].stats is not None
    assert op.outputs[0].stats.nan == 1


def test_inputs_past_the_fourth_and_a_second_output_are_kept(reader: TraceReader) -> None:
    op = reader.op(5)
    assert op is not None
    assert [tensor.value_id >> 4 for tensor in op.inputs] == [0, 1, 3, 4, 0, 1]
    assert [tensor.value_id for tensor in op.outputs] == [80, 81]


def test_pages_follow_each_other_by_key(reader: TraceReader) -> None:
    first = reader.ops(limit=10)
    second = reader.ops(limit=10, after_op_id=first[-1].op_id)
    rest = reader.ops(limit=10, after_op_id=second[-1].op_id)
    assert [op.op_id for op in first + second + rest] == list(range(24))
    assert reader.ops(after_op_id=23) == []


def test_ops_of_one_step_or_a_range_of_steps(reader: TraceReader) -> None:
    assert [op.op_id for op in reader.ops(step=1)] == list(range(8, 16))
    assert [op.op_id for op in reader.iter_ops(1, 2)] == list(range(8, 24))
    assert reader.ops(step=99) == []


def test_ops_by_position(reader: TraceReader) -> None:
    assert reader.count_ops() == 24
    assert reader.count_ops(step=2) == 8
    assert [op.op_id for op in reader.ops_at(20, 30)] == [20, 21, 22, 23]
    assert [op.op_id for op in reader.ops_at(1, 3, step=1)] == [9, 10]


def test_hits_are_ids_of_ops_with_a_non_finite_output(reader: TraceReader) -> None:
    assert list(reader.hits()) == [19, 20, 21, 23]
    assert list(reader.hits(2)) == [19, 20, 21, 23]
    assert list(reader.hits(1)) == []


def test_parents_children_producers_and_consumers(reader: TraceReader) -> None:
    assert [op.op_id for op in reader.parents(3)] == [2]
    assert [op.op_id for op in reader.children(2)] == [3, 4]
    assert [op and op.op_id for op in reader.producers(5)] == [0, 1, 3, 4, 0, 1]
    assert reader.producers(0) == [None, None]
    assert reader.consumers(3 * 16) == [4, 5, 6]
    assert reader.consumers(-1) == []


def test_steps_and_sinks_are_events(reader: TraceReader) -> None:
    assert [step["step"] for step in reader.steps()] == [0, 1, 2]
    assert [step["scalars"]["loss"] for step in reader.steps(1, 1)] == [0.5]
    (sink,) = reader.sinks()
    assert (sink["sink"], sink["op_id"], sink["rank"]) == ("loss", 23, 0)
    assert reader.findings() == []
    assert {event["t"] for event in reader.events()} == {"step", "sink"}


def test_sql_sees_every_row_wherever_it_is(reader: TraceReader) -> None:
    assert reader.sql("SELECT count(*), min(op_id), max(op_id) FROM ops") == [(24, 0, 23)]
    assert reader.sql("SELECT step, loss FROM steps ORDER BY step")[1] == (1, 0.5)
    assert reader.sql("SELECT kind, op_id FROM events") == [("sink", 23)]
    assert reader.sql("SELECT DISTINCT shard FROM timeline") == [("r00000-0",)]
    assert reader.sql("SELECT role, first_bad FROM op_full WHERE role = 'out'") == [("out", [4])]
    assert reader.sql("SELECT count(*) FROM ops_aligned") == [(24,)]
    assert reader.sql("SELECT count(*) FROM kernel_ops") == [(0,)]
    assert reader.sql("SELECT count(*) FROM sources")[0][0] >= 7


def test_groups_and_tops(reader: TraceReader) -> None:
    groups = {row["phase"]: row for row in reader.group("phase")}
    assert (groups["forward"]["n_ops"], groups["backward"]["n_ops"]) == (21, 3)
    assert groups["forward"]["nan_ops"] == 4
    assert reader.top(1, "numel")[0]["numel"] == 18
    with pytest.raises(ConfigError, match="no such column"):
        reader.group("name; DROP VIEW ops")


def test_the_first_bad_op_of_the_run(reader: TraceReader) -> None:
    first = reader.first_bad()
    assert first is not None
    assert first.op_id == 19


def test_a_segment_and_the_ring_say_the_same_of_each_op(tmp_path: Path) -> None:
    live = training_run(tmp_path / "live.tltrace")
    closed = training_run(tmp_path / "closed.tltrace")
    closed.close()
    assert [_plain(op) for op in _all_ops(live)] == [_plain(op) for op in _all_ops(closed)]


def _plain(op: Op) -> Op:
    """Leave out what segments do not keep: the device of inputs that were not measured."""
    tensors = tuple(dataclasses.replace(tensor, device="") for tensor in op.inputs)
    return dataclasses.replace(op, inputs=tensors, outputs=op.outputs[:1])


def test_ids_of_overlapping_segments_are_merged_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardreader, "SMALL_ROWS", 0)
    trace = TraceBuilder(tmp_path / "run.tltrace")
    for op_id in (1, 2, 3, 5):
        trace.op(op_id=op_id)
    trace.seal()
    for op_id in (0, 4, 6, 7):
        trace.op(op_id=op_id)
    trace.close()
    with open_trace(trace.path) as opened:
        assert [op.op_id for op in opened.iter_ops()] == list(range(8))
        assert [op.op_id for op in opened.ops(limit=3, after_op_id=1)] == [2, 3, 4]
        assert [op.op_id for op in opened.ops_at(3, 6)] == [3, 4, 5]


def test_ranks_are_kept_apart_and_aligned(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    training_run(path, world_size=2).close()
    training_run(path, rank=1, world_size=2, clock_offset_ns=-5000).close()
    with open_trace(path) as opened:
        assert opened.ranks() == [0, 1]
        op = opened.op(3, rank=1)
        assert op is not None
        assert op.rank == 1
        first = opened.first_bad()
        assert first is not None
        assert first.rank == 1
        rows = opened.sql("SELECT min(aligned_start_ns) FROM ops_aligned GROUP BY rank ORDER BY 1")
        assert rows == [(-5000,), (0,)]
        assert len(opened.sinks()) == 2
        assert len(opened.sinks(rank=1)) == 1


def test_a_restarted_rank_shows_its_last_attempt(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    training_run(path, steps=1, hit=False).close()
    training_run(path, attempt=1, steps=2, hit=False).close()
    with open_trace(path) as opened:
        assert opened.count_ops() == 16
        assert opened.sql("SELECT count(*) FROM ops") == [(24,)]


def test_opening_imports_neither_duckdb_nor_pyarrow(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    code = (
        "import sys; from tracelens.storage.reader import open_trace; open_trace(sys.argv[1]);"
        "print(sorted({'duckdb', 'pyarrow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_a_small_trace_is_read_without_duckdb(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    code = (
        "import sys; from tracelens.storage.reader import open_trace; r = open_trace(sys.argv[1]);"
        "assert r.op(19).outputs[0].first_bad == (4,); assert r.sinks(); assert r.hits();"
        "print('duckdb' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "manifest.json").write_text('{"format": "trace')
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"format": "other"}')
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "manifest.json").write_text(
        '{"format": "tracelens", "version": "2.0", "min_reader": "2.0"}'
    )
    for name, words in (
        ("none", "no such trace"),
        ("file", "is a file"),
        ("empty", "not a trace"),
        ("torn", "repair"),
        ("foreign", "not a TraceLens trace"),
        ("newer", "upgrade"),
    ):
        with pytest.raises(TraceError, match=words) as caught:
            open_trace(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3


def test_a_newer_minor_version_with_more_columns_is_read(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version":"1.0"', '"version":"1.7"'))
    with open_trace(path) as opened:
        assert opened.op(3) is not None


def test_a_record_index_ignores_the_order_of_records(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    records = trace.ring.committed(0, trace.position)
    values = trace.strings.values
    forward = RecordIndex(records, lambda number: values[number][1])
    backward = RecordIndex(records[::-1], lambda number: values[number][1])
    assert [forward.op(n) for n in range(24)] == [backward.op(n) for n in range(24)]
