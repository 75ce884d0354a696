"""One process's part of a trace: what is written, kept, dropped, refused, and left by a fork."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracelens.errors import SessionError
from tracelens.storage.format import HEADER_HEAD_OFFSET, RECORD, RING_HEADER_BYTES
from tracelens.storage.manifest import LIVE_DIR, SHARDS_DIR, read_manifest, read_shard
from tracelens.storage.reader import open_trace
from tracelens.storage.ring import RingReader
from tracelens.storage.verify import verify
from tracelens.storage.writer import ShardWriter

SITE = {"op": "aten::mm", "module": "a", "file": "f.py", "line": 3, "function": "f", "code": "x"}
SHARD = "r00000-0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tltrace"


@pytest.fixture
def writer(path: Path) -> Iterator[ShardWriter]:
    writer = ShardWriter(path, mode="stream", ring_bytes=1 << 20)
    yield writer
    writer.close()


def op(writer: ShardWriter, step: int = 0, site: int = 0, vmax: float = 1.0) -> int:
    op_id = writer.reserve_op_id()
    writer.write(
        writer.reserve(), 0, 2, 2, 9, site or writer.intern("site", SITE), 0, op_id, step, -1, -1,
        op_id * 10, 5, 1, 2, -1, -1, 2, 1, 2, 0, -1.0, vmax, 0.0, 1.0, 2.0, 8, 0, 0, 0, 0,
        op_id * 16,
    )  # fmt: skip
    return op_id


def op_ids(path: Path) -> list[int]:
    with open_trace(path) as trace:
        return [row[0] for row in trace.sql("SELECT op_id FROM ops ORDER BY op_id")]


def live_files(path: Path) -> list[str]:
    return sorted(file.name for file in (path / LIVE_DIR).glob("*"))


def test_a_closed_stream_holds_every_record_and_nothing_live(path: Path) -> None:
    writer = ShardWriter(path, mode="stream", ring_bytes=1 << 20, on_full="block")
    for step in range(200):
        for _ in range(100):
            op(writer, step)
    writer.event("step", step=0, start_ns=0, duration_ns=1, n_ops=100, hits=0, scalars={"loss": 2})
    writer.close()
    assert op_ids(path) == list(range(20_000))
    assert live_files(path) == []
    assert verify(path) == []
    assert read_shard(path / SHARDS_DIR / f"{SHARD}.json").records == 20_000


def test_threads_write_to_one_ring(path: Path) -> None:
    writer = ShardWriter(path, mode="stream", ring_bytes=1 << 20, on_full="block")
    threads = [
        threading.Thread(target=lambda: [op(writer) for _ in range(3_000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert op_ids(path) == list(range(12_000))


def test_a_flight_recorder_keeps_only_the_steps_it_is_told(path: Path) -> None:
    writer = ShardWriter(path, mode="flight", ring_bytes=1 << 20)
    ids = {step: [op(writer, step) for _ in range(10)] for step in range(6)}
    assert writer.keep(2, 3) == 20
    assert writer.keep(3, 4) == 10
    assert writer.keep(3, 4) == 0
    writer.close()
    assert op_ids(path) == ids[2] + ids[3] + ids[4]


def test_a_flight_recorder_overwrites_its_oldest(path: Path) -> None:
    writer = ShardWriter(path, mode="flight", ring_bytes=64 * RECORD.itemsize)
    for _ in range(100):
        op(writer)
    assert writer.committed()["op_id"].tolist() == list(range(36, 100))
    assert writer.committed(last=3)["op_id"].tolist() == [97, 98, 99]
    writer.close()


def test_a_full_ring_drops_and_counts(path: Path) -> None:
    writer = ShardWriter(path, mode="stream", ring_bytes=64 * RECORD.itemsize)
    assert writer._sidecar is not None
    os.kill(writer._sidecar.pid or 0, 19)  # SIGSTOP: the sealer does not keep up
    for _ in range(100):
        op(writer)
    os.kill(writer._sidecar.pid or 0, 18)
    writer.close()
    assert op_ids(path) == list(range(64))
    assert read_shard(path / SHARDS_DIR / f"{SHARD}.json").dropped == 36


def test_close_is_idempotent_and_later_writes_do_nothing(path: Path) -> None:
    writer = ShardWriter(path, mode="stream", ring_bytes=1 << 20)
    op(writer)
    writer.close()
    writer.close()
    op(writer, site=1)
    assert not writer.event("note", kind="drop", message="late")
    assert not writer.tensor(1, "x", b"1234", "float32", [1], 0, 0)
    assert writer.keep(0, 1) == 0
    assert op_ids(path) == [0]


def test_a_value_is_interned_once_and_written_before_its_first_use(writer: ShardWriter) -> None:
    first = writer.intern("site", SITE)
    assert first >= 1
    assert writer.intern("site", dict(SITE)) == first
    other = writer.intern("tensor", ["float32", [2], "cpu"])
    assert other != first
    lines = (writer.run_dir / LIVE_DIR / f"{SHARD}.strings").read_text().splitlines()
    assert json.loads(lines[0]) == [first, "site", SITE]
    assert writer.strings(first) == SITE
    assert writer.strings(99) is None


def test_an_event_is_on_disk_when_event_returns(writer: ShardWriter) -> None:
    writer.event("note", kind="drop", severity="info", message="a", value=float("nan"))
    line = (writer.run_dir / LIVE_DIR / f"{SHARD}.events").read_text()
    assert line.startswith('{"t":"note"')
    assert json.loads(line)["value"] == "NaN"


@pytest.mark.parametrize("huge", [1e300, -1e300, float("inf"), float("nan")])
def test_a_number_that_a_field_cannot_hold_is_clamped_not_raised(
    writer: ShardWriter, huge: float
) -> None:
    op(writer, vmax=huge)
    found = float(writer.committed()["vmax"][0])
    expected = float(np.clip(huge, -3.4028234663852886e38, 3.4028234663852886e38))
    assert found == pytest.approx(huge if np.isinf(huge) else expected, nan_ok=True)


def test_times_count_from_the_epoch_of_the_manifest(writer: ShardWriter) -> None:
    import time

    epoch = read_manifest(writer.run_dir).epoch_unix_ns
    assert abs(writer.now_ns() - (time.time_ns() - epoch)) < 50_000_000
    assert abs(time.monotonic_ns() - writer.epoch_monotonic_ns - writer.now_ns()) < 50_000_000


def test_native_code_finds_ring_head_and_records_at_the_addresses(writer: ShardWriter) -> None:
    import ctypes

    for _ in range(5):
        op(writer)
    head = ctypes.c_uint64.from_address(writer.header_address + HEADER_HEAD_OFFSET)
    assert head.value == 5
    record = (ctypes.c_char * RECORD.itemsize).from_address(writer.record_address + 176 * 4)
    assert np.frombuffer(bytes(record), dtype=RECORD)["op_id"][0] == 4
    assert writer.record_address == writer.header_address + RING_HEADER_BYTES


def test_native_counters_replace_pythons(writer: ShardWriter) -> None:
    writer.use_native(iter(range(40, 50)).__next__, iter(range(7, 9)).__next__)
    assert (writer.reserve(), writer.reserve_op_id()) == (40, 7)


def test_ranks_share_a_run(path: Path) -> None:
    writers = [ShardWriter(path, rank=rank, world_size=2, ring_bytes=1 << 16) for rank in (1, 0)]
    for writer in writers:
        writer.event("note", kind="data", message="hello")
        writer.close()
    with open_trace(path) as trace:
        assert trace.sql("SELECT rank FROM events ORDER BY rank") == [(0,), (1,)]
    assert live_files(path) == []


def test_a_rank_that_has_recorded_there_is_refused(path: Path) -> None:
    ShardWriter(path, ring_bytes=1 << 16).close()
    with pytest.raises(SessionError, match="already holds a trace of rank 0"):
        ShardWriter(path)


def test_a_foreign_directory_or_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SessionError, match="not empty"):
        ShardWriter(tmp_path)
    with pytest.raises(SessionError, match="is a file"):
        ShardWriter(tmp_path / "mine.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system nobody can write")
def test_a_directory_that_cannot_be_written_is_an_os_error() -> None:
    with pytest.raises(OSError):
        ShardWriter("/proc/self/a.tltrace")


def test_a_full_disk_never_raises_into_training(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tracelens.storage.writer import ShardWriter
w = ShardWriter(sys.argv[1], mode="flight", ring_bytes=1 << 16)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
for n in range(3000):
    w.event("note", kind="data", message="x" * 100, n=n)
    w.intern("site", {"op": f"op{n}", "code": "y" * 100})
print(w.disk_full, w.lost_lines > 1000, w.intern("site", {"op": "op2999", "code": "y" * 100}))
print(w.tensor(1, "t", bytes(1 << 20), "float32", [1 << 18], 0, 0), w.keep(0, 9))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(w.event("note", kind="data", message="there is room again"))
w.close()
"""
    path = tmp_path / "a.tltrace"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["True True 3000", "False 0", "True"]
    with open_trace(path) as trace:
        messages = [row[0] for row in trace.sql("SELECT message FROM events ORDER BY event_id")]
    assert messages[-1] == "there is room again"
    assert len(messages) > 500


def _in_child(writer: ShardWriter, queue: Any) -> None:
    for _ in range(10):
        op(writer, step=77)
    writer.keep(0, 99)
    queue.put((writer.event("note", kind="data", message="child"), writer.intern("site", SITE)))
    writer.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["stream", "flight"])
def test_a_forked_child_writes_nothing_and_the_parent_goes_on(path: Path, mode: str) -> None:
    writer = ShardWriter(path, mode=mode, ring_bytes=1 << 20)
    before = [op(writer, step=1) for _ in range(5)]
    site = writer.intern("site", SITE)
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    child = fork.Process(target=_in_child, args=(writer, queue))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert queue.get() == (False, site)
    after = [op(writer, step=1) for _ in range(5)]
    writer.event("note", kind="data", message="parent")
    writer.keep(0, 99)
    writer.close()
    assert op_ids(path) == before + after
    with open_trace(path) as trace:
        assert trace.sql("SELECT message FROM events") == [("parent",)]
        assert trace.sql("SELECT DISTINCT step FROM ops") == [(1,)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_killed_while_its_child_lives_is_sealed(path: Path) -> None:
    code = """
import os, sys, time
from tracelens.storage.writer import ShardWriter
w = ShardWriter(sys.argv[1], mode="stream", ring_bytes=1 << 16)
w.event("note", kind="data", message="x")
if os.fork() == 0:
    time.sleep(30)
    os._exit(0)
print(w._sidecar.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        while _alive(pid):
            threading.Event().wait(0.05)
        assert read_shard(path / SHARDS_DIR / f"{SHARD}.json").state == "killed"
        program.stdout.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_trace_is_finished_here_when_the_sealing_process_was_killed(path: Path) -> None:
    writer = ShardWriter(path, mode="stream", ring_bytes=1 << 20)
    assert writer._sidecar is not None
    for _ in range(100):
        op(writer)
    os.kill(writer._sidecar.pid or 0, 9)
    writer.close()
    assert op_ids(path) == list(range(100))
    assert verify(path) == []


def test_recording_and_closing_import_no_arrow(path: Path) -> None:
    code = """
import sys
from tracelens.storage.writer import ShardWriter
w = ShardWriter(sys.argv[1], mode="stream", ring_bytes=1 << 16)
w.event("note", kind="data", message="x")
w.close()
print([name for name in ("pyarrow", "duckdb", "pandas") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_live_ring_is_readable_by_others(writer: ShardWriter) -> None:
    for _ in range(3):
        op(writer)
    reader = RingReader(writer.run_dir / LIVE_DIR / f"{SHARD}.ring")
    assert reader.meta["run_id"] == read_manifest(writer.run_dir).run_id
    assert reader.committed(0, 100)["op_id"].tolist() == [0, 1, 2]
