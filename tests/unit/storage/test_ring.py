"""The ring: its layout field by field, commits, holes, laps and damage."""

from __future__ import annotations

import errno
import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tracelens.errors import TraceError
from tracelens.storage.format import (
    HEADER_HEAD_OFFSET,
    HEADER_SEALED_OFFSET,
    HEADER_STRUCT,
    RECORD,
    RECORD_BYTES,
    RECORD_STRUCT,
)
from tracelens.storage.ring import RingReader, RingWriter, capacity_for

FIELDS = [
    ("kind", 0, 1), ("phase", 1, 1), ("flags", 2, 2), ("tid", 4, 4), ("site_id", 8, 4),
    ("layout_id", 12, 4), ("op_id", 16, 8), ("step", 24, 8), ("parent_id", 32, 8),
    ("fwd_op_id", 40, 8), ("start_ns", 48, 8), ("duration_ns", 56, 8), ("in_ids", 64, 32),
    ("n_in", 96, 1), ("n_out", 97, 1), ("stat_level", 98, 1), ("reserved", 99, 1),
    ("vmin", 100, 4), ("vmax", 104, 4), ("mean", 108, 4), ("std", 112, 4), ("l2", 116, 4),
    ("numel", 120, 8), ("nan", 128, 8), ("posinf", 136, 8), ("neginf", 144, 8), ("zero", 152, 8),
    ("value_id", 160, 8), ("seq", 168, 8),
]  # fmt: skip


def put(ring: RingWriter, position: int, **values: int) -> None:
    slot = position % ring.capacity
    for name, value in values.items():
        ring.records[name][slot] = value
    ring.records["seq"][slot] = position + 1


@pytest.fixture
def ring(tmp_path: Path) -> RingWriter:
    return RingWriter(tmp_path / "a.ring", 64 * RECORD_BYTES, {"shard": "r00000-0"})


def test_every_field_lies_where_the_format_says() -> None:
    assert [
        (name, RECORD.fields[name][1], RECORD[name].itemsize) for name in RECORD.names
    ] == FIELDS


def test_what_struct_packs_is_what_the_dtype_reads() -> None:
    values = list(range(1, 32))
    packed = RECORD_STRUCT.pack(*values, 32)
    record = np.frombuffer(packed, dtype=RECORD)[0]
    read = [int(x) for name in RECORD.names for x in np.atleast_1d(record[name])]
    assert read == list(range(1, 33))


def test_the_header_explains_the_records_to_a_stranger(ring: RingWriter) -> None:
    data = ring.path.read_bytes()
    magic, version, record_bytes, capacity, _, _, length = HEADER_STRUCT.unpack_from(data)
    assert (magic, version, record_bytes, capacity) == (b"TLRING1\0", 1, RECORD_BYTES, 64)
    meta = json.loads(data[HEADER_STRUCT.size : HEADER_STRUCT.size + length])
    dtype = np.dtype([(n, t, (c,)) if c > 1 else (n, t) for n, t, c in meta["fields"]])
    assert dtype == RECORD
    assert struct.calcsize(meta["struct"]) == RECORD_BYTES


def test_the_header_offsets_are_those_of_the_struct() -> None:
    packed = HEADER_STRUCT.pack(b"", 0, 0, 0, 11, 22, 0)
    assert struct.unpack_from("<Q", packed, HEADER_SEALED_OFFSET) == (11,)
    assert struct.unpack_from("<Q", packed, HEADER_HEAD_OFFSET) == (22,)


@pytest.mark.parametrize(
    ("size", "capacity"), [(0, 64), (64 * 176, 64), (128 * 176 - 1, 64), (64 << 20, 1 << 18)]
)
def test_a_capacity_is_a_power_of_two_that_fits(size: int, capacity: int) -> None:
    assert capacity_for(size) == capacity


def test_a_reader_finds_committed_records_and_skips_holes(ring: RingWriter) -> None:
    for position in (0, 1, 3, 4):
        put(ring, position, op_id=position * 10)
    reader = RingReader(ring.path)
    records = reader.committed(0, 10)
    assert (records["seq"] - 1).tolist() == [0, 1, 3, 4]
    assert records["op_id"].tolist() == [0, 10, 30, 40]
    assert reader.scan(0) == 2
    assert reader.next_committed(2, 64) == 3
    assert reader.find_head() == 5


def test_a_lapped_ring_holds_only_the_newest(ring: RingWriter) -> None:
    for position in range(100):
        put(ring, position, op_id=position)
    records = RingReader(ring.path).committed(0, 100)
    assert records["op_id"].tolist() == list(range(36, 100))


def test_a_half_written_record_is_not_read(ring: RingWriter) -> None:
    put(ring, 0, op_id=1)
    put(ring, 1, op_id=2)
    ring.records["seq"][1] = 0
    assert RingReader(ring.path).committed(0, 2)["op_id"].tolist() == [1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:100],
        lambda data: b"X" + data[1:],
        lambda data: data[:8] + b"\x09" + data[9:],
        lambda data: data[:16] + (63).to_bytes(8, "little") + data[24:],
        lambda data: data[:16] + (1 << 40).to_bytes(8, "little") + data[24:],
        lambda data: data[:40] + b"\xff\xff\xff\x7f" + data[44:],
        lambda data: data[:44] + b"[[[[" + data[48:],
        lambda data: data[:-1],
    ],
    ids="short magic version odd_capacity huge_capacity json_length json truncated".split(),
)
def test_a_damaged_ring_is_one_error_line(ring: RingWriter, damage) -> None:  # type: ignore[no-untyped-def]
    path = ring.path.with_name("b.ring")
    path.write_bytes(damage(ring.path.read_bytes()))
    with pytest.raises(TraceError) as caught:
        RingReader(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_ring_is_allocated_not_sparse(ring: RingWriter) -> None:
    assert ring.path.stat().st_blocks * 512 >= ring.size_bytes


def test_a_disk_without_room_is_an_error_at_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from tracelens.storage.ring import RingWriter
try:
    RingWriter({str(tmp_path / "c.ring")!r}, 8 << 20, {{}})
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) in (errno.EFBIG, errno.ENOSPC)
    assert not (tmp_path / "c.ring").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20
