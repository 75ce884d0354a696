"""Memory snapshots and memory timelines of PyTorch as traces."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profile_files import dump, real, snapshot
from tracelens.cli import main
from tracelens.convert import memory_snapshot
from tracelens.convert.importers import importer_of
from tracelens.convert.memory_snapshot_reader import PickleRefused, read
from tracelens.errors import TraceError
from tracelens.storage.reader import open_trace
from tracelens.storage.verify import verify

BASE = 0x7F0000000000
T0_US = 1_700_000_000_000_000
STACK = [
    {"filename": "??", "line": 0, "name": "c10::alloc"},
    {"filename": "/env/lib/python3.11/site-packages/torch/nn/linear.py", "line": 9, "name": "f"},
    {"filename": "/home/me/train.py", "line": 42, "name": "step"},
]


def action(what: str, at_us: int, address: int, size: int, **more: Any) -> dict[str, Any]:
    return {
        "action": what, "addr": address, "size": size, "stream": 0, "time_us": T0_US + at_us,
        "frames": STACK, **more,
    }  # fmt: skip


def block(address: int, size: int, **more: Any) -> dict[str, Any]:
    return {
        "address": address, "size": size, "requested_size": size, "state": "active_allocated",
        "frames": STACK, **more,
    }  # fmt: skip


ACTIONS = [
    action("segment_alloc", 0, BASE, 1 << 20),
    action("alloc", 1, BASE, 1000),
    action("alloc", 2, BASE + 1024, 500),
    action("free_requested", 3, BASE, 1000),
    action("free_completed", 3, BASE, 1000),
    action("free_requested", 4, BASE + 9000, 64),
    action("oom", 5, 0, 1 << 40, device_free=7),
]
BLOCKS = [
    block(BASE + 1024, 512, requested_size=500),
    block(BASE + 8000, 128, frames=[]),
    {"address": BASE, "size": 1024, "state": "inactive"},
]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_snapshot_replays_to_what_it_says_is_allocated(protocol: int, tmp_path: Path) -> None:
    path = dump(snapshot(ACTIONS, BLOCKS), tmp_path / "s.pickle", protocol)
    out = tmp_path / "t"
    result = importer_of(path)(path, out)
    assert result.problems == () and verify(out) == []
    with open_trace(out) as trace:
        assert trace.manifest.epoch_unix_ns == T0_US * 1000
        rows = trace.sql(
            "SELECT t_ns, device, size_bytes, address, allocated_bytes, reserved_bytes, file, line"
            " FROM memory"
        )
        user = ("/home/me/train.py", 42)
        assert rows == [
            # What was there before the ring begins: freed in it, or still there at its end.
            (0, "cuda:0", 64, BASE + 9000, 64, 0, None, None),
            (0, "cuda:0", 128, BASE + 8000, 192, 0, None, None),
            (0, "cuda:0", 0, BASE, 192, 1 << 20, *user),
            (1000, "cuda:0", 1000, BASE, 1192, 1 << 20, *user),
            (2000, "cuda:0", 500, BASE + 1024, 1692, 1 << 20, *user),
            (3000, "cuda:0", -1000, BASE, 692, 1 << 20, *user),
            (4000, "cuda:0", -64, BASE + 9000, 628, 1 << 20, *user),
        ]
        # 500 + 128 bytes: the blocks of the snapshot.
        (oom,) = [note for note in trace.notes() if note["kind"] == "oom"]
        assert "ran out of memory at /home/me/train.py:42" in oom["message"]


def test_a_folder_of_snapshots_is_a_rank_each(tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    for rank in (1, 0):
        dump(snapshot(ACTIONS[: 2 + rank], []), folder / f"rank{rank}.pickle")
    (folder / "rank2.pickle").write_bytes(b"\x80\x04\x95")
    result = memory_snapshot.convert(folder, tmp_path / "t")
    assert ["rank2.pickle" in each for each in result.problems].count(True) == 1
    with open_trace(tmp_path / "t") as trace:
        assert trace.sql("SELECT rank, count(*) FROM memory GROUP BY 1 ORDER BY 1") == [
            (0, 2),
            (1, 3),
        ]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/should-not-exist",)


@pytest.mark.parametrize("value", [Evil(), np.float64(1.0), {1, 2}, bytearray(b"x"), print])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_wants_code_is_refused_by_name(
    value: object, protocol: int, tmp_path: Path
) -> None:
    path = dump({"segments": [value]}, tmp_path / "s.pickle", protocol)
    with pytest.raises(TraceError, match=r"GLOBAL|REDUCE|unknown instruction|BYTEARRAY"):
        memory_snapshot.convert(path, tmp_path / "t")
    assert not Path("/tmp/should-not-exist").exists()


@pytest.mark.parametrize("value", [[], {"weights": [1]}, "text", 3])
def test_a_pickle_of_something_else_is_refused(value: object, tmp_path: Path) -> None:
    path = dump(value, tmp_path / "s.pickle")
    with pytest.raises(TraceError, match=r"not of torch.cuda.memory._dump_snapshot"):
        memory_snapshot.convert(path, tmp_path / "t")


def test_plain_data_reads_as_python_would_and_torn_data_never_breaks() -> None:
    shared = [
        1,
        -2,
        2**40,
        -(2**70),
        1.5,
        None,
        True,
        "ä\ud800".encode("utf-8", "replace").decode(),
    ]
    value = {"a": shared, "b": (shared, (), (1,), (1, 2)), ("k", 1): {}}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(value, protocol=protocol)
        found = read(data)
        assert found == value and found["a"] is found["b"][0]
        for cut in range(len(data)):
            with pytest.raises(PickleRefused):
                read(data[:cut])
    data = bytearray(pickle.dumps(snapshot(ACTIONS, BLOCKS)))
    for place in range(len(data)):
        changed = data.copy()
        changed[place] ^= 0x15
        try:
            read(bytes(changed))
        except PickleRefused:
            continue


def test_nonsense_in_a_snapshot_is_left_out(tmp_path: Path) -> None:
    huge = [action("alloc", n, BASE + n, (1 << 63) - 1) for n in range(3)]
    nonsense: list[Any] = [7, {"action": {}}, {"action": "alloc", "frames": 3}, {"frames": []}]
    found = snapshot([*huge, *nonsense, *ACTIONS], [])
    found["segments"][0]["blocks"] = [{"state": "active_allocated", "size": "x"}, 3]
    found["device_traces"].append("not a list")
    result = memory_snapshot.convert(dump(found, tmp_path / "s.pickle"), tmp_path / "t")
    assert any("absurd sizes" in each for each in result.problems)
    assert result.rows > 0


def test_a_damaged_snapshot_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.pickle"
    path.write_bytes(pickle.dumps(snapshot(ACTIONS, BLOCKS))[:-100])
    assert main(["import", str(path), "-o", str(tmp_path / "t")]) == 3
    error = capsys.readouterr().err
    assert "cut off or damaged at byte" in error and error.count("\n") == 1


TIMELINE = [
    [-1, 1, 100, 0],
    [5_000, 2, 50, 7],
    [6_000, 3, -50, 7],
    [6_000, 3, 50, 4],
    [7_000, 3, -100, 0],
    [7_000, 3, 100, 0],
    [8_000, 4, -50, 4],
]


@pytest.mark.parametrize("packed", [False, True])
def test_a_timeline_tells_owners_and_their_changes(packed: bool, tmp_path: Path) -> None:
    data = json.dumps(TIMELINE).encode()
    path = tmp_path / "memory.raw.json"
    path.write_bytes(gzip.compress(data) if packed else data)
    importer_of(path)(path, tmp_path / "t")
    with open_trace(tmp_path / "t") as trace:
        assert trace.sql("SELECT t_ns, size_bytes, allocated_bytes, owner FROM memory") == [
            (0, 100, 100, "parameter"),
            (0, 50, 150, None),
            (1_000, -50, 100, None),
            (1_000, 50, 150, "activation"),
            (3_000, -50, 100, "activation"),
        ]


def test_a_timeline_that_is_cut_off_keeps_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "memory.raw.json"
    path.write_text(json.dumps(TIMELINE)[:-12])
    result = memory_snapshot.convert(path, tmp_path / "t")
    assert "cut off" in result.problems[0]
    path.write_text("[[1, 1, 1, 99999999999999999999999]]")
    with pytest.raises(TraceError, match=r"not a memory timeline|larger than 64 bits"):
        memory_snapshot.convert(path, tmp_path / "u")


def test_the_real_timeline_has_the_peak_of_its_numbers(tmp_path: Path) -> None:
    path = real("memory_timeline_raw", "memory_timeline.raw.gz")
    rows = json.loads(gzip.decompress(path.read_bytes()))
    held = peak = 0
    for _, _, size, _ in rows:
        held += size
        peak = max(peak, held)
    importer_of(path)(path, tmp_path / "t")
    with open_trace(tmp_path / "t") as trace:
        assert trace.sql("SELECT max(allocated_bytes), sum(size_bytes) FROM memory") == [
            (peak, held)
        ]
        owners = trace.sql("SELECT owner FROM memory WHERE owner IS NOT NULL GROUP BY 1 ORDER BY 1")
    assert [owner for (owner,) in owners] == [
        "activation", "gradient", "input", "optimizer_state", "parameter", "temporary",
    ]  # fmt: skip
