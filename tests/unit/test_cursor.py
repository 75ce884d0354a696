"""The cursor: forwards and backwards, over modules and composite ops, to stops and marks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trace_builder import TraceBuilder
from tracelens.cursor import Cursor, Stop
from tracelens.errors import ConfigError
from tracelens.events import OpFlag, Phase
from tracelens.filters import compile as compile_filter
from tracelens.storage import shardreader
from tracelens.storage.reader import open_trace

OPS_PER_STEP = 10


def record_step(trace: TraceBuilder, step: int, *, bad: bool = False) -> int:
    """Record one step of ten ops; return the id of its first.

    0 data, 1 embed, then in the encoder 2 (layer 0), 3 a composite of layer 1 with children 4 and
    5, 6 of the encoder itself, 7 the loss, 8 the backward of 4, 9 the update.
    """
    first = trace.next_op_id
    nan = {"nan": 1} if bad else None
    trace.op("DataLoader", step=step, module="", phase=Phase.DATA, line=1)
    trace.op("aten::embedding", step=step, module="embed", line=2, inputs=(first * 16,))
    trace.op(
        "aten::linear", step=step, module="encoder.layers.0", line=3, inputs=((first + 1) * 16,)
    )
    trace.op(
        "aten::attention", step=step, module="encoder.layers.1", line=4, flags=OpFlag.COMPOSITE
    )
    trace.op(
        "aten::log", step=step, module="encoder.layers.1", line=4, parent=first + 3,
        inputs=((first + 2) * 16,), stats=nan,
    )  # fmt: skip
    trace.op(
        "aten::mul", step=step, module="encoder.layers.1", line=4, parent=first + 3,
        inputs=((first + 4) * 16, (first + 2) * 16), stats=nan,
    )  # fmt: skip
    trace.op(
        "aten::add", step=step, module="encoder", line=5, inputs=((first + 5) * 16,), stats=nan
    )
    trace.op("aten::loss", step=step, module="", line=6, inputs=((first + 6) * 16,), stats=nan)
    trace.op(
        "LogBackward0", step=step, module="encoder.layers.1", line=4, phase=Phase.BACKWARD,
        fwd=first + 4, inputs=((first + 4) * 16,), stats=nan,
    )  # fmt: skip
    trace.op("aten::add_", step=step, module="", phase=Phase.OPTIMIZER, line=7, stats=nan)
    trace.step(step)
    return first


def finding(op_id: int, step: int) -> dict[str, object]:
    return {
        "rule": "log-of-negative", "severity": "error", "verdict": "non-finite", "step": step,
        "rank": 0, "message": "NaN first made by log",
        "first_cause": {
            "op": "aten::log", "op_id": op_id, "phase": "forward", "why": "log of a negative",
        },
        "sink": {"sink": "loss", "op_id": op_id + 3},
    }  # fmt: skip


@pytest.fixture(params=["small", "large", "killed", "half sealed"])
def cursor(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Cursor:
    """A cursor at the first op of four steps; op 4 of step 2 makes a NaN."""
    trace = TraceBuilder(tmp_path / "run.tltrace")
    if request.param != "small":
        monkeypatch.setattr(shardreader, "SMALL_ROWS", 0)
    for step in range(4):
        first = record_step(trace, step, bad=step == 2)
        if step == 2:
            trace.event("finding", **finding(first + 4, step))
        if step == 1 and request.param == "half sealed":
            trace.seal()
    trace.close() if request.param in ("small", "large") else trace.kill()
    reader = open_trace(trace.path)
    request.addfinalizer(reader.close)
    return Cursor(reader)


def walk(move: Callable[[], Stop], most: int = 100) -> list[int]:
    """Repeat a move to the end; return the ids it stopped at."""
    ids = []
    for _ in range(most):
        stop = move()
        assert stop.op is not None
        if stop.reason in ("end", "start", "missing"):
            return ids
        ids.append(stop.op.op_id)
    raise AssertionError("the move never ended")


def test_step_visits_every_op_and_reverse_step_the_same_ones_back(cursor: Cursor) -> None:
    assert cursor.op_id == 0
    assert walk(cursor.step) == list(range(1, 40))
    assert cursor.step().reason == "end"
    assert walk(cursor.reverse_step) == list(range(38, -1, -1))
    assert cursor.reverse_step().reason == "start"


def test_many_steps_at_once_are_that_many_single_ones(cursor: Cursor) -> None:
    assert cursor.step(7).op.op_id == 7
    assert cursor.step(12).op.op_id == 19
    assert cursor.reverse_step(15).op.op_id == 4
    assert (cursor.step(1_000).reason, cursor.op_id) == ("end", 39)
    assert (cursor.reverse_step(1_000).reason, cursor.op_id) == ("start", 0)


def test_index_and_count_tell_the_position(cursor: Cursor) -> None:
    cursor.goto(op_id=23)
    assert (cursor.index, cursor.count) == (23, 40)
    assert cursor.goto(index=31).op.op_id == 31
    assert (cursor.goto(index=99).reason, cursor.op_id) == ("end", 39)
    assert (cursor.goto(index=-5).reason, cursor.op_id) == ("start", 0)


def test_next_goes_over_what_modules_inside_and_composite_ops_call(cursor: Cursor) -> None:
    assert [cursor.next().op.op_id for _ in range(3)] == [7, 9, 10]
    cursor.goto(op_id=3)
    assert cursor.next().op.op_id == 6
    cursor.goto(op_id=4)
    assert cursor.next().op.op_id == 5


def test_reverse_next_undoes_next(cursor: Cursor) -> None:
    cursor.goto(op_id=10)
    assert [cursor.reverse_next().op.op_id for _ in range(3)] == [9, 7, 0]
    cursor.goto(op_id=6)
    assert cursor.reverse_next().op.op_id == 1
    cursor.goto(op_id=5)
    assert cursor.reverse_next().op.op_id == 4


def test_return_leaves_the_composite_op_then_the_modules_call(cursor: Cursor) -> None:
    cursor.goto(op_id=4)
    assert cursor.finish().op.op_id == 6
    assert cursor.finish().op.op_id == 7
    assert cursor.finish().op.op_id == 8, "outside of modules, the phase ends the call"


def test_reverse_finish_goes_to_the_composite_op_then_before_the_call(cursor: Cursor) -> None:
    cursor.goto(op_id=5)
    assert cursor.reverse_finish().op.op_id == 3
    assert cursor.reverse_finish().op.op_id == 2


def test_continue_stops_at_the_ops_that_findings_name_then_at_the_end(cursor: Cursor) -> None:
    stops = [cursor.resume() for _ in range(3)]
    assert [(stop.reason, stop.op.op_id) for stop in stops] == [
        ("finding", 24), ("finding", 27), ("end", 39),
    ]  # fmt: skip
    stops = [cursor.reverse_resume() for _ in range(3)]
    assert [(stop.reason, stop.op.op_id) for stop in stops] == [
        ("finding", 27), ("finding", 24), ("start", 0),
    ]  # fmt: skip


def test_breakpoints_stop_continue_both_ways(cursor: Cursor) -> None:
    cursor.stop_at_findings = False
    added = cursor.breaks.add("aten::log")
    stop = cursor.resume()
    assert (stop.reason, stop.breakpoint) == ("breakpoint", added)
    assert cursor.op_id == 4
    assert [cursor.resume().op.op_id for _ in range(3)] == [14, 24, 34]
    assert [cursor.reverse_resume().op.op_id for _ in range(3)] == [24, 14, 4]
    assert cursor.breaks.remove(added.number) == [added]
    assert cursor.resume().reason == "end"


def test_a_breakpoint_on_the_way_stops_next_and_return(cursor: Cursor) -> None:
    cursor.breaks.add("aten::mul")
    stop = cursor.next()
    assert (stop.reason, cursor.op_id) == ("breakpoint", 5)
    assert (cursor.next().reason, cursor.op_id) == ("step", 6)


def test_a_breakpoint_for_once_is_gone_after_it(cursor: Cursor) -> None:
    cursor.breaks.add("aten::linear", once=True)
    assert (cursor.resume().reason, cursor.op_id) == ("breakpoint", 2)
    assert len(cursor.breaks) == 0


def test_a_disabled_breakpoint_stops_nothing(cursor: Cursor) -> None:
    added = cursor.breaks.add("aten::linear")
    cursor.breaks.enable(added.number, False)
    assert cursor.resume().reason == "finding"
    with pytest.raises(ConfigError, match="no breakpoint 9"):
        cursor.breaks.enable(9)


def test_a_watch_stops_where_the_condition_turns_true_only(cursor: Cursor) -> None:
    cursor.stop_at_findings = False
    cursor.breaks.add("nan>0 and phase:forward", watch=True)
    stops = [cursor.resume() for _ in range(5)]
    reached = [(stop.reason, stop.op.op_id) for stop in stops]
    assert reached == [("watch", n) for n in (24, 25, 26, 27)] + [("end", 39)]
    # What is always true turns true once for each operation.
    cursor.breaks.remove()
    cursor.goto(index=0)
    cursor.breaks.add("numel>0 and op~aten::(log|mul)", watch=True)
    assert [cursor.resume().op.op_id for _ in range(3)] == [4, 5, 39]


def test_the_last_write_of_a_bad_value_is_one_reverse_continue_away(cursor: Cursor) -> None:
    cursor.goto(op_id=27)
    assert cursor.op is not None
    value = cursor.op.inputs[0].value_id
    cursor.stop_at_findings = False
    cursor.breaks.add(f"writes:{value}")
    assert cursor.reverse_resume().op.op_id == 26


def test_find_goes_to_the_next_match_and_stays_if_there_is_none(cursor: Cursor) -> None:
    assert cursor.find(compile_filter("@nan")).op.op_id == 24
    assert cursor.find(compile_filter("aten::log"), back=True).op.op_id == 14
    stop = cursor.find(compile_filter("aten::nothing"))
    assert (stop.reason, cursor.op_id) == ("missing", 14)


def test_a_cancelled_search_leaves_the_cursor_where_it_was(cursor: Cursor) -> None:
    told: list[tuple[int, int]] = []
    cursor.progress = lambda done, total: told.append((done, total))
    cursor.find(compile_filter("aten::nothing"))
    assert told[-1] == (40, 40)
    cursor.cancelled = lambda: True
    assert (cursor.find(compile_filter("@nan")).reason, cursor.op_id) == ("cancelled", 0)
    assert (cursor.next().reason, cursor.op_id) == ("cancelled", 0)


def test_findings_are_places_to_go_to(cursor: Cursor) -> None:
    assert [cursor.next_finding().op.op_id for _ in range(2)] == [24, 27]
    assert cursor.next_finding().reason == "missing"
    assert cursor.previous_finding().op.op_id == 24
    assert cursor.previous_finding().reason == "missing"


def test_training_steps_are_places_to_go_to(cursor: Cursor) -> None:
    cursor.goto(op_id=5)
    assert [cursor.next_training_step().op.op_id for _ in range(3)] == [10, 20, 30]
    assert (cursor.next_training_step().reason, cursor.op_id) == ("end", 30)
    cursor.step(3)
    assert [cursor.previous_training_step().op.op_id for _ in range(4)] == [30, 20, 10, 0]
    assert cursor.previous_training_step().reason == "start"
    assert cursor.goto(step=2).op.op_id == 20
    assert (cursor.goto(step=77).reason, cursor.op_id) == ("missing", 20)


def test_producers_lead_back_to_the_data_and_consumers_on_to_the_loss(cursor: Cursor) -> None:
    cursor.goto(op_id=27)
    ids = [27]
    while producers := [op for op in cursor.producers() if op is not None]:
        cursor.goto(op_id=producers[0].op_id)
        ids.append(cursor.op_id)
    assert ids == [27, 26, 25, 24, 22, 21, 20]
    cursor.goto(op_id=24)
    assert [op.op_id for op in cursor.consumers()] == [25, 28]


def test_why_explains_a_bad_op_and_has_nothing_to_say_of_a_finite_one(cursor: Cursor) -> None:
    assert cursor.why() is None
    cursor.goto(op_id=25)
    told = cursor.why()
    assert told is not None
    assert told["first_cause"]["op_id"] == 24


def test_marks_are_kept_beside_the_trace_not_in_it(cursor: Cursor) -> None:
    before = sorted(path.name for path in cursor.reader.path.rglob("*"))
    cursor.goto(op_id=17)
    cursor.mark("here")
    again = Cursor(open_trace(cursor.reader.path))
    assert again.jump("here").op.op_id == 17
    assert again.jump("there").reason == "missing"
    assert sorted(path.name for path in cursor.reader.path.rglob("*")) == before
    with pytest.raises(ConfigError, match="one word"):
        cursor.mark("two words")
    again.reader.close()


@pytest.mark.parametrize(
    "text", ["", "[", "null", '{"marks": [[1, 2], ["a", 0, "x"]]}', "[" * 9999]
)
def test_a_damaged_file_of_marks_is_no_marks(tmp_path: Path, text: str) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.op()
    trace.close()
    (tmp_path / "run.tltrace.marks.json").write_text(text)
    with open_trace(trace.path) as reader:
        cursor = Cursor(reader)
        assert cursor.marks.names(0) == []
        cursor.mark("a")
    assert json.loads((tmp_path / "run.tltrace.marks.json").read_text()) == {"marks": [["a", 0, 0]]}


def test_an_empty_trace_has_no_position_and_every_move_says_so(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.step(0)
    trace.close()
    with open_trace(trace.path) as reader:
        cursor = Cursor(reader)
        assert (cursor.op, cursor.op_id, cursor.index, cursor.count) == (None, -1, 0, 0)
        for move in (
            cursor.step, cursor.reverse_step, cursor.next, cursor.reverse_next, cursor.finish,
            cursor.reverse_finish, cursor.resume, cursor.reverse_resume, cursor.next_finding,
            cursor.next_training_step,
        ):  # fmt: skip
            assert move().op is None
        assert cursor.goto(op_id=0).reason == cursor.goto(index=0).reason == "missing"
        assert (cursor.producers(), cursor.consumers(), cursor.why()) == ([], [], None)


def test_a_live_trace_is_followed_at_its_end(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    record_step(trace, 0)
    with open_trace(trace.path) as reader:
        cursor = Cursor(reader)
        cursor.goto(index=9)
        assert cursor.step().reason == "end"
        record_step(trace, 1)
        assert (cursor.step().reason, cursor.op_id) == ("step", 10)
        assert cursor.count == 20
    trace.close()


def test_gaps_in_op_ids_are_stepped_over(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    for op_id in (3, 10, 500, 501, 70_000):
        trace.op(op_id=op_id)
    trace.close()
    with open_trace(trace.path) as reader:
        cursor = Cursor(reader)
        assert walk(cursor.step) == [10, 500, 501, 70_000]
        assert walk(cursor.reverse_step) == [501, 500, 10, 3]
        assert cursor.index == 0


def test_a_damaged_segment_is_left_out_of_a_search_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardreader, "SMALL_ROWS", 0)
    trace = TraceBuilder(tmp_path / "run.tltrace")
    for step in range(3):
        record_step(trace, step)
        trace.seal()
    trace.close()
    second = sorted((trace.path / "ops").rglob("*.parquet"))[1]
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 0xFF
    second.write_bytes(bytes(data))
    with open_trace(trace.path) as reader:
        cursor = Cursor(reader)
        cursor.stop_at_findings = False
        cursor.breaks.add("aten::log")
        assert [cursor.resume().op.op_id for _ in range(2)] == [4, 24]
        assert any(problem.kind == "quarantined" for problem in reader.health().problems)
