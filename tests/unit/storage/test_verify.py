"""``verify`` looks at every byte that a checksum or a rule covers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trace_builder import TraceBuilder, training_run
from tracelens.errors import TraceError
from tracelens.storage.verify import read_safetensors_header, verify


def kinds(path: Path) -> list[str]:
    return sorted(problem.kind for problem in verify(path))


def test_sound_traces_have_no_problem(tmp_path: Path) -> None:
    assert verify(training_run(tmp_path / "closed.tltrace").close()) == []
    assert verify(training_run(tmp_path / "live.tltrace").path) == []


def test_progress_counts_every_file_once(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    calls: list[tuple[int, int, str]] = []
    verify(path, lambda *call: calls.append(call))
    total = calls[0][1]
    assert [call[0] for call in calls] == list(range(total + 1))
    assert {call[1] for call in calls} == {total}
    for file in path.glob("*/*/*.parquet"):
        assert file.name in [call[2] for call in calls]


@pytest.mark.parametrize("table", ["ops", "stats", "steps", "events", "sources"])
def test_any_flipped_bit_of_any_segment_is_found(tmp_path: Path, table: str) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    file = next(path.glob(f"{table}/*/*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (problem,) = verify(path)
    assert problem.kind == "quarantined"
    assert file.name in problem.message


def test_damage_is_found_where_the_manifest_has_no_checksum(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    shard = path / "_shards" / "r00000-0.json"
    state = json.loads(shard.read_text())
    for segment in state["segments"]:
        segment["crc32"] = None
    shard.write_text(json.dumps(state) + "\n")
    assert verify(path) == []
    file = next(path.glob("ops/*/*.parquet"))
    chunk = pq.read_metadata(file).row_group(0).column(0)
    data = bytearray(file.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(data)
    assert kinds(path) == ["quarantined"]


def test_files_that_no_manifest_names_are_told(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    file = next(path.glob("ops/*/*.parquet"))
    (file.parent / "ops-000000000999-000000000999.parquet").write_bytes(file.read_bytes())
    assert kinds(path) == ["unlisted"]


def test_a_damaged_run_table_is_told(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    (path / "shards" / "segments.parquet").write_bytes(b"PAR1PAR1")
    assert kinds(path) == ["quarantined"]


def test_strings_that_records_name_and_nobody_stored_are_counted(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.op()
    Path(trace.strings._lines.path).write_bytes(b"[1, 2\n")
    assert kinds(trace.path) == ["damaged_lines", "unknown_strings"]


def safetensors(header: object, data: bytes = b"\0" * 16) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


SOUND = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def test_a_sound_safetensors_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors({"__metadata__": {"x": "y"}, **SOUND}))
    assert read_safetensors_header(file) == SOUND


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        safetensors([]),
        safetensors({"a": 1}),
        safetensors({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 99]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-8, 8]}}),
        safetensors({"a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]}}),
        safetensors(
            {
                "a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]},
                "b": {"dtype": "U8", "shape": [9], "data_offsets": [7, 16]},
            }
        ),
    ],
)
def test_a_damaged_safetensors_header_is_found(tmp_path: Path, content: bytes) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    file = path / "_blobs" / "r00000-0" / "000000.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert kinds(path) == ["damaged_tensors"]
    with pytest.raises(TraceError) as caught:
        read_safetensors_header(file)
    assert "\n" not in str(caught.value)
