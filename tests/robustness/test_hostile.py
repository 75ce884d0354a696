"""Traces that someone damaged or made up: never a crash, a hang, a traceback or a full memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from use_trace import use

from trace_builder import TraceBuilder, training_run
from tracelens.errors import TraceError
from tracelens.storage.checksum import file_crc32
from tracelens.storage.format import HEADER_STRUCT, RING_HEADER_BYTES
from tracelens.storage.manifest import write_shard
from tracelens.storage.reader import open_trace
from tracelens.storage.tail import Tail
from tracelens.storage.verify import verify

HERE = Path(__file__).parent


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    return training_run(tmp_path / "run.tltrace").close()


@pytest.fixture
def live(tmp_path: Path) -> TraceBuilder:
    trace = training_run(tmp_path / "run.tltrace")
    trace.kill()
    return trace


def edit_shard(path: Path, **changes: Any) -> None:
    """Change a shard's JSON; ``segments`` may be a function of each entry."""
    file = path / "_shards" / "r00000-0.json"
    state = json.loads(file.read_text())
    edit = changes.pop("segments", None)
    if edit is not None:
        state["segments"] = [edit(dict(segment)) for segment in state["segments"]]
    state.update(changes)
    file.write_text(json.dumps(state) + "\n")


def problems(path: Path) -> list[str]:
    with open_trace(path) as reader:
        return sorted(problem.kind for problem in reader.health().problems)


@pytest.mark.parametrize("state", ["closed", "killed"])
@pytest.mark.parametrize("seed", [1])
def test_no_damage_crashes_hangs_or_fills_memory(tmp_path: Path, state: str, seed: int) -> None:
    trace = training_run(tmp_path / "run.tltrace", ring_bytes=1 << 16)
    trace.close() if state == "closed" else trace.kill()
    done = subprocess.run(
        [sys.executable, HERE / "mutate.py", tmp_path / "run.tltrace", str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    mutations, peak_growth_mb = map(int, done.stdout.split())
    assert mutations >= 20
    assert peak_growth_mb < 1500


@pytest.mark.parametrize(
    "file",
    [
        "../outside.parquet",
        "/etc/passwd",
        "ops/shard=r00000-0/../../../outside.parquet",
        "ops/shard=r00001-0/x.parquet",
        "ops/shard=r00000-0/x.parquet'); DROP VIEW ops; --",
        "ops/shard=r00000-0/" + "x" * 5000 + ".parquet",
        "ops\\shard=r00000-0\\x.parquet",
        "ops/shard=r00000-0/x\x00.parquet",
    ],
)
def test_a_segment_cannot_lie_outside_its_place(closed: Path, file: str) -> None:
    edit_shard(closed, segments=lambda segment: {**segment, "file": file})
    assert set(problems(closed)) & {"torn_shard", "quarantined"}
    use(closed)


def test_a_segment_that_is_a_link_out_of_the_trace_is_not_followed(
    closed: Path, tmp_path: Path
) -> None:
    segment = next(closed.glob("ops/*/*.parquet"))
    segment.rename(tmp_path / "outside.parquet")
    segment.symlink_to(tmp_path / "outside.parquet")
    assert problems(closed) == ["quarantined"]
    with open_trace(closed) as reader:
        assert reader.ops() == []
        assert reader.sql("SELECT count(*) FROM ops") == [(0,)]


def test_a_table_folder_that_is_a_link_out_of_the_trace_is_not_followed(
    closed: Path, tmp_path: Path
) -> None:
    (closed / "ops").rename(tmp_path / "outside")
    (closed / "ops").symlink_to(tmp_path / "outside")
    assert problems(closed) == ["quarantined"]


@pytest.mark.parametrize("name", ["manifest.json", "_shards/r00000-0.json"])
def test_a_manifest_that_is_a_link_out_or_a_pipe_is_refused(
    closed: Path, tmp_path: Path, name: str
) -> None:
    (closed / name).rename(tmp_path / "outside.json")
    (closed / name).symlink_to(tmp_path / "outside.json")
    use(closed)
    (closed / name).unlink()
    os.mkfifo(closed / name)
    use(closed)
    if name == "manifest.json":
        with pytest.raises(TraceError, match="not a plain file"):
            open_trace(closed)
    else:
        assert problems(closed) == ["missing_shard", "torn_shard"]


@pytest.mark.parametrize("suffix", ["ring", "strings", "events", "kept"])
def test_live_files_that_are_pipes_or_devices_do_not_block(live: TraceBuilder, suffix: str) -> None:
    file = live.path / "_live" / f"r00000-0.{suffix}"
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    use(live.path)
    file.unlink()
    file.symlink_to("/dev/zero")
    use(live.path)


@pytest.mark.parametrize(
    "ring",
    ["/dev/zero", "/etc/passwd", "../../x.ring", "/proc/self/mem", "_live/../../x.ring", "\0"],
)
def test_a_ring_path_leads_only_to_a_ring(live: TraceBuilder, ring: str) -> None:
    edit_shard(live.path, ring=ring)
    assert "unreadable_ring" in problems(live.path)
    use(live.path)


@pytest.mark.parametrize("capacity", [0, 3, 1 << 26, 1 << 62, (1 << 64) - 1])
def test_a_ring_that_claims_a_huge_capacity_costs_no_memory(
    live: TraceBuilder, capacity: int
) -> None:
    file = live.path / "_live" / "r00000-0.ring"
    header = bytearray(file.read_bytes()[:RING_HEADER_BYTES])
    fields = list(HEADER_STRUCT.unpack_from(header))
    fields[3] = capacity
    HEADER_STRUCT.pack_into(header, 0, *fields)
    with open(file, "wb") as ring:
        ring.write(header)
        # Sparse: it takes no room on disk, and would take 11 GiB of memory if it were copied.
        ring.truncate(RING_HEADER_BYTES + 176 * min(capacity, 1 << 26))
    assert "unreadable_ring" in problems(live.path)
    use(live.path)


def test_records_full_of_nonsense_are_read_as_nonsense(live: TraceBuilder) -> None:
    file = live.path / "_live" / "r00000-0.ring"
    generator = np.random.default_rng(5)
    data = bytearray(file.read_bytes())
    for position in range(50):
        start = RING_HEADER_BYTES + 176 * position
        data[start : start + 168] = generator.bytes(168)
        data[start] = position % 4
        data[start + 168 : start + 176] = (position + 1).to_bytes(8, "little")
    file.write_bytes(data)
    use(live.path)


def test_strings_and_events_of_wrong_types_are_left_out(live: TraceBuilder) -> None:
    lines = [
        '[1,"site",[]]', '[2,"layout",{"in":3,"out":[[1]]}]', '[3,"layout",{"out":{"x":1}}]',
        '[4,"tensor",[]]', '[5,"site",{"op":3,"line":"x","file":7}]', '["a"]', "7", "null",
        "[" * 100_000, '[6,"site",{"op":"' + "x" * 100_000 + '"}]', '{"t":1}',
    ]  # fmt: skip
    (live.path / "_live" / "r00000-0.strings").write_text("\n".join(lines) + "\n")
    events = [
        {"t": "step"}, {"t": "step", "step": "x"}, {"t": "step", "step": 1, "start_ns": "x"},
        {"t": "step", "step": 1, "start_ns": [], "duration_ns": {}, "scalars": 7},
        {"t": "step", "step": 10**30, "start_ns": 10**30, "duration_ns": 10**30},
        {"t": "sink", "op_id": [], "value_id": "x", "stats": 7, "step": [], "t_ns": {}},
        {"t": "sink", "op_id": 10**30, "value_id": 10**30, "shape": "x"},
        {"t": "finding", "message": {"x": 1}, "first_cause": 7, "path": 8, "step": None},
        {"t": "note", "kind": [], "message": 7}, {"t": "data", "batch_index": "x"},
        {"t": "tensor", "name": 7}, {"t": "tensor", "name": "x", "file": "../../etc/passwd"},
        {"t": "unknown"}, {"t": "\ud800"}, {"t": "note", "message": "\ud800\0"},
    ]  # fmt: skip
    text = "\n".join(json.dumps(event) for event in events)
    (live.path / "_live" / "r00000-0.events").write_text(text + "\n" + "[" * 100_000 + "\n")
    use(live.path)


def test_a_line_that_never_ends_is_given_up(live: TraceBuilder) -> None:
    with open(live.path / "_live" / "r00000-0.events", "ab") as file:
        file.write(b'{"t":"note","message":"')
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"t":"note","message":"after"}\n')
    with open_trace(live.path) as reader:
        assert [note["message"] for note in reader.notes()] == ["after"]
        assert reader.health().of_kind("damaged_lines")
    tail = Tail(live.path)
    assert tail.poll().events[-1]["message"] == "after"
    tail.close()


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"rows": 1 << 70},
        {"rows": "x"},
        {"rows": 25},
        {"size_bytes": None},
        {"op_lo": "x", "op_hi": []},
        {"op_lo": 1 << 80, "op_hi": -(1 << 80)},
        {"step_lo": {}, "step_hi": 1.5},
        {"crc32": "x"},
        {"crc32": 5},
        {"table": "shards"},
        {"table": 7},
    ],
)
def test_a_segment_entry_that_lies_costs_at_most_that_segment(
    closed: Path, change: dict[str, Any]
) -> None:
    edit_shard(closed, segments=lambda segment: {**segment, **change})
    use(closed)


@pytest.mark.parametrize(
    "change",
    [
        {"pid": -1},
        {"pid": 1 << 80},
        {"pid": 0},
        {"rank": -5},
        {"heartbeat_ns": -(1 << 80)},
        {"sealed": -1},
        {"sealed": 1 << 80},
        {"events_sealed_bytes": -1},
        {"events_sealed_bytes": 1 << 62},
        {"clock_offset_ns": 1 << 80},
        {"mode": "x" * 1000},
        {"state": "\n\n"},
        {"n_events": 1 << 80},
        {"host": "elsewhere"},
        {"segments": lambda segment: 7},
    ],
)
def test_a_shard_file_that_lies_costs_at_most_that_shard(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    for name, kill in (("closed", False), ("killed", True)):
        trace = training_run(tmp_path / name)
        path = trace.kill() if kill else trace.close()
        edit_shard(path, **change)
        use(path)


def hostile_segment(path: Path, table: pa.Table) -> None:
    """Replace the ops by another table, with a manifest that vouches for it."""
    file = next(path.glob("ops/*/*.parquet"))
    pq.write_table(table, file, compression="zstd")
    changes = {
        "rows": table.num_rows,
        "size_bytes": file.stat().st_size,
        "crc32": file_crc32(file),
    }
    edit_shard(
        path, segments=lambda entry: {**entry, **changes} if entry["table"] == "ops" else entry
    )


def test_columns_of_the_wrong_type_are_found(closed: Path) -> None:
    sound = pq.read_table(next(closed.glob("ops/*/*.parquet")), partitioning=None)
    for column in ("op_id", "in_ids", "flags", "step", "name"):
        texts = pa.array([f"{column}-{row}" for row in range(sound.num_rows)])
        wrong = pa.array([[row] for row in range(sound.num_rows)]) if column == "name" else texts
        at = sound.column_names.index(column)
        hostile_segment(closed, sound.set_column(at, column, wrong))
        use(closed)
        assert "quarantined" in problems_after_use(closed)


def problems_after_use(path: Path) -> list[str]:
    with open_trace(path) as reader:
        reader.op(3)
        reader.sql("SELECT count(*) FROM ops")
        return [problem.kind for problem in reader.health().problems]


def test_nulls_where_none_belong_do_no_harm(closed: Path) -> None:
    sound = pq.read_table(next(closed.glob("ops/*/*.parquet")), partitioning=None)
    for column in ("op_id", "step", "name", "phase", "start_ns", "in_ids", "flags"):
        at = sound.column_names.index(column)
        field = sound.schema.field(column).with_nullable(True)
        hostile_segment(closed, sound.set_column(at, field, pa.nulls(sound.num_rows, field.type)))
        use(closed)


def test_missing_and_unknown_columns_are_allowed(closed: Path) -> None:
    sound = pq.read_table(next(closed.glob("ops/*/*.parquet")), partitioning=None)
    changed = sound.drop_columns(["vmin", "code"]).append_column(
        "new_column", pa.array(range(sound.num_rows))
    )
    hostile_segment(closed, changed)
    with open_trace(closed) as reader:
        op = reader.op(19)
        assert op is not None
        assert op.source is not None
        assert op.source.code == ""
        assert reader.sql("SELECT count(*), count(vmin) FROM ops") == [(24, 0)]


def test_a_small_file_that_unpacks_to_gigabytes_takes_little_memory(closed: Path) -> None:
    sound = pq.read_table(next(closed.glob("ops/*/*.parquet")), partitioning=None)
    repeated = pa.concat_tables([sound] * 400).combine_chunks()
    at = sound.column_names.index("code")
    chunk = pa.array(["x" * 50_000] * 1_000)
    hostile_segment(
        closed, repeated.set_column(at, "code", pa.chunked_array([chunk] * 9 + [chunk[:600]]))
    )
    assert next(closed.glob("ops/*/*.parquet")).stat().st_size < 4 << 20
    code = (
        "import resource, sys; from tracelens.storage.reader import open_trace\n"
        "from tracelens.storage.verify import verify\n"
        "verify(sys.argv[1])\n"
        "reader = open_trace(sys.argv[1], memory_limit_bytes=256 << 20)\n"
        "reader.op(3), reader.ops(), reader.hits(), reader.sql('SELECT count(*) FROM ops')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, closed], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 2000


@pytest.mark.parametrize(
    "row",
    [
        {"file": "../../../etc/passwd"},
        {"file": "/etc/passwd"},
        {"file": "_blobs/r00000-0/link.safetensors"},
        {"offset": -8},
        {"offset": 1 << 62},
        {"size_bytes": 1 << 60, "shape": f"[{1 << 58}]"},
        {"shape": "[-1]"},
        {"shape": "[1.5]"},
        {"shape": "[" * 50_000},
        {"shape": json.dumps([1] * 100)},
        {"dtype": "object"},
        {"dtype": "O"},
    ],
)
def test_a_stored_tensor_lies_only_in_its_own_file(
    live: TraceBuilder, row: dict[str, Any], tmp_path: Path
) -> None:
    blobs = live.path / "_blobs" / "r00000-0"
    blobs.mkdir(parents=True)
    (blobs / "000000.safetensors").write_bytes(bytes(64))
    (tmp_path / "outside").write_bytes(bytes(64))
    (blobs / "link.safetensors").symlink_to(tmp_path / "outside")
    sound = {
        "value_id": 16, "step": 0, "op_id": 1, "name": "x", "dtype": "float32", "shape": "[4]",
        "size_bytes": 16, "file": "_blobs/r00000-0/000000.safetensors", "key": "x", "offset": 8,
        "hash": "", "dup_of": None,
    }  # fmt: skip
    live.event("tensor", **sound)
    with open_trace(live.path) as reader:
        assert reader.tensor("x").tolist() == [0.0] * 4
    live.event("tensor", **{**sound, **row, "step": 1})
    with open_trace(live.path) as reader:
        with pytest.raises(TraceError) as caught:
            reader.tensor("x", step=1)
        assert "\n" not in str(caught.value)
    use(live.path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"format":"tracelens"}',
        '{"format":"tracelens","version":"1.0","min_reader":"1.0"}',
        '{"format":"tracelens","version":1,"min_reader":1}',
        '{"format":"tracelens","version":"99.0","min_reader":"1.0","run_id":"x","epoch_unix_ns":0}',
        '{"format":"tracelens","version":"1.0","min_reader":"1.9","run_id":"x","epoch_unix_ns":0}',
        "\x00" * 1000,
        "9" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused_in_one_line(closed: Path, text: str) -> None:
    (closed / "manifest.json").write_text(text)
    with pytest.raises(TraceError) as caught:
        open_trace(closed)
    assert "\n" not in str(caught.value)
    with pytest.raises(TraceError):
        verify(closed)


def test_a_manifest_of_gigabytes_is_not_read(closed: Path) -> None:
    with open(closed / "manifest.json", "wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(TraceError, match="larger than"):
        open_trace(closed)


@pytest.mark.parametrize(
    "change", [{"world_size": "x"}, {"world_size": -1}, {"tables": 7}, {"features": [[]]}]
)
def test_a_manifest_with_odd_values_is_read(closed: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((closed / "manifest.json").read_text())
    (closed / "manifest.json").write_text(json.dumps({**manifest, **change}))
    use(closed)


def test_many_shard_files_of_one_name_pattern_do_no_harm(closed: Path) -> None:
    for name in ("r00000-0.json.bak", "x.json", "r1.json", "r00001-0.json"):
        shutil.copy(closed / "_shards" / "r00000-0.json", closed / "_shards" / name)
    assert problems(closed) == ["torn_shard"]
    use(closed)


def test_a_writer_state_that_names_itself_live_forever_is_readable(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace")
    trace.state.pid = 1
    write_shard(trace.path, trace.state)
    use(trace.path)
