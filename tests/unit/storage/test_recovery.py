"""What repair and recover_tail make of traces whose writers died or whose files were damaged."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tracelens.errors import TraceError
from tracelens.storage.manifest import LIVE_DIR, MANIFEST, SHARDS_DIR, read_manifest, read_shard
from tracelens.storage.reader import open_trace
from tracelens.storage.recovery import recover_tail, repair
from tracelens.storage.verify import verify
from tracelens.storage.writer import ShardWriter

SHARD = "r00000-0"
_PROGRAM = """
import os, sys
from tracelens.storage.writer import ShardWriter
w = ShardWriter(sys.argv[1], mode=sys.argv[2], ring_bytes=1 << 20)
site = w.intern("site", {"op": "aten::mm", "file": "f.py", "line": 1})
for step in range(5):
    for _ in range(20):
        op = w.reserve_op_id()
        w.write(w.reserve(), 0, 2, 2, 9, site, 0, op, step, -1, -1, op, 5, 1, 2, -1, -1, 2, 1, 2,
                0, -1.0, 1.0, 0.0, 1.0, 2.0, 8, 0, 0, 0, 0, op * 16)
    w.event("step", step=step, start_ns=0, duration_ns=1, n_ops=20, hits=0, scalars={})
w.reserve()
w.keep(1, 1)
os.kill(w._sidecar.pid, 9)
os.kill(os.getpid(), 9)
"""


def killed(path: Path, mode: str = "stream") -> Path:
    """Make a trace whose program and sealing process were killed after 100 ops."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, path, mode])
    assert done.returncode == -signal.SIGKILL
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return killed(tmp_path / "a.tltrace")


def count(path: Path, table: str = "ops") -> int:
    with open_trace(path) as trace:
        return int(trace.sql(f"SELECT count(*) FROM {table}")[0][0])


@pytest.mark.parametrize("mode", ["stream", "flight"])
def test_the_tail_of_a_killed_writer_is_read_without_writing(tmp_path: Path, mode: str) -> None:
    path = killed(tmp_path / "a.tltrace", mode)
    before = sorted((f, f.stat().st_mtime_ns) for f in path.rglob("*"))
    tail = recover_tail(path, SHARD)
    assert {name: table.num_rows for name, table in tail.tables.items()} == {
        "ops": 100, "steps": 5, "sources": 1
    }  # fmt: skip
    assert sorted((f, f.stat().st_mtime_ns) for f in path.rglob("*")) == before


@pytest.mark.parametrize("mode", ["stream", "flight"])
def test_repair_seals_everything_and_a_second_one_finds_nothing(tmp_path: Path, mode: str) -> None:
    path = killed(tmp_path / "a.tltrace", mode)
    done = repair(path)
    assert (done.sealed, done.records) == ([SHARD], 100)
    assert (count(path), count(path, "steps")) == (100, 5)
    assert [problem for problem in verify(path) if problem.kind != "dropped"] == []
    assert not (path / LIVE_DIR).exists()
    assert str(repair(path)) == "nothing to repair"


def test_torn_last_lines_are_told_and_left_out(path: Path) -> None:
    for name in (f"{SHARD}.events", f"{SHARD}.strings"):
        with open(path / LIVE_DIR / name, "ab") as file:
            file.write(b'{"t":"no')
    repair(path)
    assert (count(path), count(path, "steps"), count(path, "events")) == (100, 5, 0)


def test_unfinished_files_are_removed(path: Path) -> None:
    for name in (".tmp-x.parquet", "ops-000000000000-000000000009.parquet"):
        file = path / "ops" / f"shard={SHARD}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"PAR1")
    done = repair(path)
    assert any(".tmp-x" in name for name in done.removed)
    assert count(path) == 100
    assert not list(path.rglob(".tmp-*"))


def test_a_lost_shard_file_is_made_anew_from_the_ring(path: Path) -> None:
    (path / SHARDS_DIR / f"{SHARD}.json").write_text("{")
    done = repair(path)
    assert done.rebuilt == [f"{SHARDS_DIR}/{SHARD}.json"]
    assert count(path) == 100
    state = read_shard(path / SHARDS_DIR / f"{SHARD}.json")
    assert (state.mode, state.framework, state.state) == ("stream", "torch", "killed")


def test_a_damaged_manifest_is_made_anew_with_its_epoch(path: Path) -> None:
    before = read_manifest(path)
    (path / MANIFEST).write_text("nonsense")
    done = repair(path)
    after = read_manifest(path)
    assert (after.epoch_unix_ns, after.run_id) == (before.epoch_unix_ns, before.run_id)
    assert MANIFEST in done.rebuilt
    assert (path / f"{MANIFEST}.damaged").read_text() == "nonsense"


def test_a_damaged_ring_is_set_aside_and_the_events_are_kept(path: Path) -> None:
    ring = path / LIVE_DIR / f"{SHARD}.ring"
    ring.write_bytes(b"X" * 5000)
    done = repair(path)
    assert done.set_aside == [f"{LIVE_DIR}/{SHARD}.ring"]
    assert ring.with_name(ring.name + ".damaged").exists()
    assert count(path, "steps") == 5


def test_a_damaged_segment_is_set_aside(path: Path) -> None:
    repair(path)
    segment = next(path.glob("ops/shard=*/*.parquet"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    done = repair(path)
    assert done.set_aside == [str(segment.relative_to(path))]
    assert not segment.exists()
    assert (count(path), count(path, "steps")) == (0, 5)


def test_a_live_shard_is_left_alone(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.tltrace", ring_bytes=1 << 16)
    try:
        done = repair(tmp_path / "a.tltrace")
        assert done.live == [SHARD]
        assert (tmp_path / "a.tltrace" / LIVE_DIR / f"{SHARD}.ring").exists()
    finally:
        writer.close()


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a"
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    with pytest.raises(TraceError) as caught:
        repair(path)
    assert "\n" not in str(caught.value)


def test_a_trace_of_a_newer_format_is_not_touched(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"version":"1.0"', '"version":"9.0"'))
    before = sorted((path / LIVE_DIR).iterdir())
    with pytest.raises(TraceError, match="newer"):
        repair(path)
    assert sorted((path / LIVE_DIR).iterdir()) == before
