"""Following a trace while it is written."""

from __future__ import annotations

import os
from pathlib import Path

from trace_builder import TraceBuilder, training_run
from tracelens.events import Role
from tracelens.storage import tail as tail_module
from tracelens.storage.manifest import write_shard
from tracelens.storage.reader import open_trace
from tracelens.storage.tail import Tail


def test_what_is_there_comes_first_and_then_what_is_new(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.op()
    trace.step(0)
    with open_trace(trace.path) as reader:
        tail = reader.tail()
    first = tail.poll()
    assert [op.op_id for op in first.ops] == [0]
    assert [event["t"] for event in first.events] == ["step"]
    assert tail.poll().ops == []
    trace.op("aten::exp", module="head")
    trace.event("note", kind="drop", message="x")
    second = tail.poll()
    assert [(op.op_id, op.name, op.module) for op in second.ops] == [(1, "aten::exp", "head")]
    assert second.events == [{"t": "note", "kind": "drop", "message": "x", "rank": 0}]
    tail.close()


def test_only_what_is_new_if_asked(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    tail = Tail(trace.path, from_start=False)
    assert tail.poll().ops == []
    assert tail.poll().events == []
    trace.op()
    assert [op.op_id for op in tail.poll().ops] == [24]
    tail.close()


def test_a_half_written_event_waits_for_its_end(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    tail = Tail(trace.path)
    with open(trace.events.path, "ab") as file:
        file.write(b'{"t":"note","message":"ha')
        file.flush()
        assert tail.poll().events == []
        file.write(b'lf"}\n')
        file.flush()
        assert [event["message"] for event in tail.poll().events] == ["half"]
    tail.close()


def test_a_hole_is_passed_after_a_while_and_counted(tmp_path: Path, monkeypatch) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    tail = Tail(trace.path)
    trace.op()
    trace.hole()
    trace.op()
    assert [op.op_id for op in tail.poll().ops] == [0]
    monkeypatch.setattr(tail_module, "_HOLE_PATIENCE_S", 0.0)
    news = tail.poll()
    assert [op.op_id for op in news.ops] == [1]
    assert news.missed == 1
    tail.close()


def test_a_reader_that_was_lapped_goes_on_and_counts(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace", mode="flight", ring_bytes=64 * 176)
    tail = Tail(trace.path)
    for _ in range(1000):
        trace.op()
    news = tail.poll()
    assert news.ops[-1].op_id == 999
    assert news.missed + len(news.ops) == 1000
    assert len(news.ops) <= 64
    tail.close()


def test_a_slow_follower_gets_the_newest_ops(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    tail = Tail(trace.path)
    for _ in range(50):
        trace.op()
    news = tail.poll(max_ops=10)
    assert [op.op_id for op in news.ops] == list(range(40, 50))
    assert (news.skipped, news.missed) == (40, 0)
    tail.close()


def test_more_inputs_and_statistics_that_come_later_join_their_op(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    tail = Tail(trace.path)
    op_id = trace.op(stats={"nan": 1})
    assert tail.poll().ops == []
    trace.stat(op_id, Role.OUTPUT, 0, value_id=op_id * 16, nan=1, first_bad=(4,))
    (op,) = tail.poll().ops
    assert op.outputs[0].first_bad == (4,)
    tail.close()


def test_an_op_whose_statistics_never_come_is_still_delivered(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    tail = Tail(trace.path)
    trace.op(stats={"nan": 1})
    assert [len(tail.poll().ops) for _ in range(3)] == [0, 1, 0]
    tail.close()


def test_news_of_a_shard_that_closed_are_delivered_before_it_ends(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tail_module, "_LIST_INTERVAL_S", 0.0)
    trace = TraceBuilder(tmp_path / "run.tltrace")
    tail = Tail(trace.path)
    tail.poll()
    for _ in range(10):
        trace.op()
    trace.step(0)
    trace.close()
    assert not list((trace.path / "_live").glob("*")) if (trace.path / "_live").exists() else True
    polls = [tail.poll() for _ in range(4)]
    assert [op.op_id for news in polls for op in news.ops] == list(range(10))
    assert [event["t"] for news in polls for event in news.events] == ["step"]
    assert [news.ended for news in polls if news.ended] == [["r00000-0"]]
    tail.close()


def test_shards_that_appear_later_are_followed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tail_module, "_LIST_INTERVAL_S", 0.0)
    TraceBuilder(tmp_path / "run.tltrace").op()
    tail = Tail(tmp_path / "run.tltrace")
    tail.poll()
    TraceBuilder(tmp_path / "run.tltrace", rank=1).op()
    assert [op.rank for op in tail.poll().ops] == [1]
    tail.close()


def test_following_ends_when_the_writer_does(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    trace.kill()
    ops = [op for news in Tail(trace.path).follow(0.001) for op in news.ops]
    assert len(ops) == 24


def test_damage_never_stops_a_tail(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    (trace.path / "_live" / "r00000-0.events").write_bytes(b'{"t": \n[1]\n{"t":"note"}\n')
    (trace.path / "_live" / "r00000-0.ring").write_bytes(os.urandom(10_000))
    write_shard(trace.path, trace.state)
    tail = Tail(trace.path)
    news = tail.poll()
    assert [event["t"] for event in news.events] == ["note"]
    assert news.ops == []
    tail.close()
