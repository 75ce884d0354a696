"""Stored tensor values: readable by others, deduplicated, bounded on read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tracelens.errors import TraceError
from tracelens.storage.tensors import MAX_HEADER_BYTES, TensorStore, read_header


def test_tensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "r00000-0")
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((3, n)).astype(np.float32) for n in range(20)]
    places = [store.put(a.tobytes(), "float32", a.shape) for a in arrays]
    store.close()
    for array, place in zip(arrays, places, strict=True):
        data = (tmp_path / place["file"]).read_bytes()
        found = data[place["offset"] : place["offset"] + place["size_bytes"]]
        assert found == array.tobytes()
        entry = read_header(tmp_path / place["file"])[place["key"]]
        assert (entry.offset, entry.size_bytes) == (place["offset"], place["size_bytes"])
        assert (entry.dtype, entry.shape) == ("F32", array.shape)


def test_the_file_obeys_the_safetensors_rules(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "r00000-0")
    store.put(b"\x01\x02\x03", "uint8", (3,))
    place = store.put(b"\x00" * 8, "bfloat16", (2, 2))
    data = (tmp_path / place["file"]).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ends = [entry["data_offsets"] for entry in header.values()]
    assert ends == [[0, 3], [3, 11]]  # contiguous, and up to the file's end
    assert 8 + length + 11 == len(data)
    assert data[8:9] == b"{"
    store.close()


def test_equal_values_are_stored_once(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "r00000-0")
    first = store.put(b"abcd" * 4, "float32", (4,))
    second = store.put(b"abcd" * 4, "float32", (4,))
    other = store.put(b"abcd" * 4, "float32", (2, 2))
    assert first["dup_of"] is None
    assert (second["dup_of"], second["offset"]) == (first["key"], first["offset"])
    assert other["dup_of"] is None
    store.close()


def test_a_chunk_is_closed_when_it_is_full(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "r00000-0", chunk_bytes=310_000)
    files = [store.put(bytes([n]) * 20_000, "uint8", (20_000,))["file"] for n in range(6)]
    assert len(set(files)) == 3
    store.close()


def test_many_small_tensors_overflow_the_header_into_a_new_chunk(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "r00000-0")
    places = [store.put(n.to_bytes(4, "little"), "int32", (1,)) for n in range(6_000)]
    store.close()
    files = {place["file"] for place in places}
    assert len(files) > 1
    assert sum(len(read_header(tmp_path / file)) for file in files) == 6_000


def test_an_unknown_dtype_is_stored_as_bytes(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "r00000-0")
    place = store.put(b"abc", "quint4x2", (6,))
    assert place["dtype"] == "quint4x2"
    assert read_header(tmp_path / place["file"])[place["key"]].shape == (3,)
    store.close()


def _file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
        _file(b"[]"),
        _file(b"null"),
        _file(b'{"a":{}}'),
        _file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}'),
        _file(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}'),
    ],
)  # fmt: skip
def test_a_damaged_header_is_one_error_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(TraceError) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
