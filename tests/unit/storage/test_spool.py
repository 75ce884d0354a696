"""Tables that a training process hands over whole: they survive it, and damage is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tracelens.errors import TraceError
from tracelens.storage.columns import Coded, Masked
from tracelens.storage.reader import open_trace
from tracelens.storage.recovery import repair
from tracelens.storage.spool import read_spool, spools, write_spool
from tracelens.storage.writer import ShardWriter

KERNELS = {
    "kern_id": np.arange(3),
    "step": np.array([0, 0, 1]),
    "op_id": Masked(np.array([4, 0, 5]), np.array([False, True, False])),
    "kind": "kernel",
    "name": Coded(np.array([0, 1, 0]), ["gemm", "relu"]),
    "device": 0,
    "stream": 7,
    "start_ns": np.arange(3) * 10,
    "duration_ns": np.full(3, 5),
}
ROWS = [(0, 4, "gemm", 0), (1, None, "relu", 10), (2, 5, "gemm", 20)]
QUERY = "SELECT kern_id, op_id, name, start_ns FROM kernels ORDER BY kern_id"

PROGRAM = """
import sys
import numpy as np
from tracelens.storage.columns import Coded, Masked
from tracelens.storage.writer import ShardWriter
columns = {
    "kern_id": np.arange(3),
    "step": np.array([0, 0, 1]),
    "op_id": Masked(np.array([4, 0, 5]), np.array([False, True, False])),
    "kind": "kernel",
    "name": Coded(np.array([0, 1, 0]), ["gemm", "relu"]),
    "device": 0,
    "stream": 7,
    "start_ns": np.arange(3) * 10,
    "duration_ns": np.full(3, 5),
}
writer = ShardWriter(sys.argv[1], mode=sys.argv[2])
assert writer.spool({"kernels": columns})
assert "pyarrow" not in sys.modules
print(writer._sidecar.pid, flush=True)
sys.stdin.read()
"""


def rows_of(path: Path) -> list[tuple[object, ...]]:
    with open_trace(path) as trace:
        return list(trace.sql(QUERY))


def problems_of(path: Path) -> list[str]:
    with open_trace(path) as trace:
        return [problem.kind for problem in trace.health().problems]


def killed_with_its_helper(trace: Path, mode: str) -> None:
    """Write a spool in a process that is killed, and its helper process before it."""
    writer = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(trace), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=trace.parent,
    )
    assert writer.stdout is not None
    helper = int(writer.stdout.readline())
    os.kill(helper, signal.SIGKILL)
    writer.kill()
    writer.communicate()


@pytest.mark.parametrize("mode", ["flight", "stream"])
def test_rows_handed_over_are_in_the_trace(tmp_path: Path, mode: str) -> None:
    writer = ShardWriter(tmp_path / "t", mode=mode)
    assert writer.spool({"kernels": KERNELS})
    writer.close()
    assert rows_of(tmp_path / "t") == ROWS
    assert not (tmp_path / "t" / "_live").exists()


@pytest.mark.parametrize("mode", ["flight", "stream"])
def test_a_killed_program_and_helper_lose_no_spool(tmp_path: Path, mode: str) -> None:
    killed_with_its_helper(tmp_path / "t", mode)
    assert "unsealed" in problems_of(tmp_path / "t")
    repair(tmp_path / "t")
    assert problems_of(tmp_path / "t") == []
    assert rows_of(tmp_path / "t") == ROWS
    repair(tmp_path / "t")
    assert rows_of(tmp_path / "t") == ROWS


def test_a_spool_is_sealed_while_the_program_runs(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "t", mode="flight")
    writer.spool({"kernels": KERNELS})
    deadline = time.monotonic() + 20
    while spools(tmp_path / "t", writer.shard) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert rows_of(tmp_path / "t") == ROWS
    writer.spool({"kernels": {**KERNELS, "kern_id": np.arange(3, 6)}})
    writer.close()
    assert len(rows_of(tmp_path / "t")) == 6


def test_a_damaged_spool_is_set_aside_and_told(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    killed_with_its_helper(trace, "stream")
    ((_, path),) = spools(trace, "r00000-0")
    data = bytearray(path.read_bytes())
    at = data.index(b"NUMPY") + 130
    data[at] ^= 0xFF
    path.write_bytes(data)
    write_spool(trace, "r00000-0", 1, {"kernels": KERNELS})
    done = repair(trace)
    assert done.set_aside == ["_live/r00000-0.spool-0.npz"]
    assert path.with_name(path.name + ".damaged").exists()
    assert rows_of(trace) == ROWS
    assert problems_of(trace) == ["quarantined"]
    with open_trace(trace) as reader:
        (note,) = [event for event in reader.events("note") if event.get("kind") == "profile"]
    assert "r00000-0.spool-0.npz is damaged" in note["message"]


def test_a_spool_is_read_without_pickle_and_without_inflating(tmp_path: Path) -> None:
    (tmp_path / "_live").mkdir()
    path = write_spool(tmp_path, "r00000-0", 0, {"kernels": KERNELS})
    assert set(read_spool(path)) == {"kernels"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("header.json", '{"kernels": {"kern_id": {}}}')
        file.writestr("kernels.kern_id.npy", b"\0" * 1_000_000)
    with pytest.raises(TraceError, match="compressed"):
        read_spool(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("header.json", '{"kernels": {"kern_id": {}}}')
        with file.open("kernels.kern_id.npy", "w") as member:
            np.lib.format.write_array(member, np.array([object()]), allow_pickle=True)
    with pytest.raises(TraceError, match="damaged profile rows"):
        read_spool(path)
    with pytest.raises(TypeError, match="no column"):
        write_spool(tmp_path, "r00000-0", 1, {"kernels": {"kern_id": np.array([object()])}})


@pytest.mark.parametrize(
    ("columns", "data"),
    [
        ('{"kern_id": {}}', b"{'descr': '<i8', 'fortran_order': False, 'shape': (10**11,)}"),
        ('{"kern_id": {}}', b"{'descr': '<i8', 'fortran_order': False, 'shape': (100000000000,)}"),
        ('{"kern_id": {}}', b"{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}"),
        ('{"kern_id": {}}', b"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 2)}"),
        ('{"kern_id": {}}', b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
        ('{"kern_id": [1]}', b"{'descr': '<i8', 'fortran_order': False, 'shape': (0,)}"),
        ('{"kern_id": null}', b"{'descr': '<i8', 'fortran_order': False, 'shape': (0,)}"),
        ("[" * 100_000, b"{}"),
    ],
)
def test_a_spool_that_claims_what_it_has_not_is_damaged(
    tmp_path: Path, columns: str, data: bytes
) -> None:
    path = tmp_path / "r00000-0.spool-0.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("header.json", f'{{"kernels": {columns}}}')
        header = data.ljust(117) + b"\n"
        size = len(header).to_bytes(2, "little")
        file.writestr("kernels.kern_id.npy", b"\x93NUMPY\x01\x00" + size + header)
    with pytest.raises(TraceError, match="damaged profile rows"):
        read_spool(path)
