"""Damage is told and never raised."""

from __future__ import annotations

from pathlib import Path

import pytest

from trace_builder import TraceBuilder, training_run
from tracelens.storage import shardreader
from tracelens.storage.reader import open_trace


def kinds(path: Path) -> list[str]:
    with open_trace(path) as reader:
        return sorted(problem.kind for problem in reader.health().problems)


def segment(path: Path, table: str) -> Path:
    return next(path.glob(f"{table}/*/*.parquet"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_sound_trace_has_no_problem(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    with open_trace(path) as reader:
        health = reader.health()
    assert health.ok
    assert health.problems == ()
    (shard,) = health.shards
    assert (shard.state, shard.alive, shard.tail_records, shard.dropped) == ("closed", False, 0, 0)


def test_a_live_trace_has_no_problem(tmp_path: Path) -> None:
    training_run(tmp_path / "run.tltrace")
    assert kinds(tmp_path / "run.tltrace") == []


def test_a_killed_writer_loses_no_committed_record(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    records = trace.position
    trace.kill()
    with open_trace(trace.path) as reader:
        assert len(list(reader.iter_ops())) == 24
        (shard,) = reader.health().shards
        assert (shard.state, shard.alive, shard.tail_records) == ("killed", False, records)
        assert [problem.kind for problem in reader.health().problems] == ["dead_writer"]
        assert "repair" in reader.health().lines()[0]


def test_holes_of_a_dead_writer_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.op()
    trace.hole()
    trace.hole()
    trace.op()
    trace.kill()
    with open_trace(trace.path) as reader:
        assert [op.op_id for op in reader.iter_ops()] == [0, 1]
        (holes,) = reader.health().of_kind("holes")
    assert holes.count == 2


def test_ranks_that_left_no_shard_are_named(tmp_path: Path) -> None:
    training_run(tmp_path / "run.tltrace", rank=1, world_size=4).close()
    with open_trace(tmp_path / "run.tltrace") as reader:
        (missing,) = reader.health().of_kind("missing_shard")
    assert missing.count == 3
    assert "0, 2, 3" in missing.message


def test_a_world_size_from_a_hostile_file_costs_nothing(tmp_path: Path) -> None:
    training_run(tmp_path / "run.tltrace", world_size=1 << 62).close()
    assert kinds(tmp_path / "run.tltrace") == ["missing_shard"]


def test_a_torn_shard_file_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    training_run(path, world_size=2).close()
    training_run(path, rank=1, world_size=2).close()
    shard = path / "_shards" / "r00001-0.json"
    shard.write_bytes(shard.read_bytes()[:100])
    assert kinds(path) == ["missing_shard", "torn_shard"]
    with open_trace(path) as reader:
        assert reader.count_ops() == 24


def test_leftover_files_are_told_and_lose_nothing(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    (path / "ops" / "shard=r00000-0" / ".tmp-ops.parquet").write_bytes(b"PAR1")
    with open_trace(path) as reader:
        assert [problem.kind for problem in reader.health().problems] == ["leftover_tmp"]
        assert reader.health().ok


@pytest.mark.parametrize("small", [True, False])
def test_a_flipped_bit_is_found_and_its_segment_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    if not small:
        monkeypatch.setattr(shardreader, "SMALL_ROWS", 0)
    trace = training_run(tmp_path / "run.tltrace", steps=2)
    trace.seal()
    trace.op(step=2)
    trace.close()
    first, last = sorted(trace.path.glob("ops/*/*.parquet"))
    flip(first, 200)
    with open_trace(trace.path) as reader:
        assert [op.op_id for op in reader.iter_ops()] == [16]
        assert reader.sql("SELECT count(*) FROM ops") == [(1,)]
        (problem,) = reader.health().of_kind("quarantined")
        assert first.name in problem.message
        assert problem.count == 16
        assert not reader.health().ok
    assert last.exists()


def test_each_flipped_byte_of_a_segment_is_noticed(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    file = segment(path, "ops")
    sound = file.read_bytes()
    for at in range(0, len(sound), max(1, len(sound) // 60)):
        flip(file, at)
        with open_trace(path) as reader:
            assert reader.ops() == [], at
            assert reader.health().of_kind("quarantined"), at
        file.write_bytes(sound)


@pytest.mark.parametrize("damage", ["truncate", "empty", "remove", "directory", "text"])
def test_a_segment_that_is_not_what_it_was_is_left_out(tmp_path: Path, damage: str) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    file = segment(path, "ops")
    size = file.stat().st_size
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[: size // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_bytes(b"x" * size)
    else:
        file.unlink()
        if damage == "directory":
            file.mkdir()
    assert kinds(path) == ["quarantined"]
    with open_trace(path) as reader:
        assert reader.op(3) is None
        assert len(reader.steps()) == 3


def test_damaged_event_lines_are_counted_and_the_others_are_read(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    with open(trace.events.path, "ab") as file:
        file.write(b'garbage\n{"no": "kind"}\n{"t":"note","message":"after"}\n{"t":"torn')
    with open_trace(trace.path) as reader:
        assert [note["message"] for note in reader.notes()] == ["after"]
        (damaged,) = reader.health().of_kind("damaged_lines")
    assert damaged.count == 2


def test_a_missing_ring_is_told_by_what_is_missing_not_by_an_error(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    trace.kill()
    (trace.path / "_live" / "r00000-0.ring").unlink()
    with open_trace(trace.path) as reader:
        assert reader.ops() == []
        assert len(reader.steps()) == 3
        assert reader.health().of_kind("unreadable_ring")
