"""Small sound recordings, one in the form of every importer, for tests that damage them."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from profile_files import GLOBAL_PID, GLOBAL_TID, XPlane, dump, environment, snapshot, xspace
from tracelens.convert.crc32c import masked, of_few

FIXTURES = Path(__file__).parents[2] / "fixtures" / "profiles"
EPOCH_NS = 1_700_000_000_000_000_000
BASE_ADDRESS = 0x7F0000000000


def _ran(
    events: list[dict[str, Any]], at: float, cat: str, name: str, begin: float, length: float,
    **more: Any,
) -> None:  # fmt: skip
    events.append({"ph": "X", "cat": cat, "name": name, "ts": at + begin, "dur": length, **more})


def kineto_events() -> list[dict[str, Any]]:
    """Return two steps of an op, its launch, its kernel and a copy."""
    host, stream = {"pid": 100, "tid": 100}, {"pid": 0, "tid": 7}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 100, "args": {"name": "python"}},
    ]
    for step in range(2):
        at, corr = 1000.5 + 1000 * step, 10 + step
        ran = partial(_ran, events, at)
        ran("user_annotation", f"ProfilerStep#{step}", 0, 900, **host)
        ran("cpu_op", "aten::mm", 10, 100, **host, args={
            "External id": corr, "Sequence number": step, "Fwd thread id": 0,
            "Input Dims": [[2, 3], [3, 4]], "Input type": ["float", "float"],
        })  # fmt: skip
        ran("cuda_runtime", "cudaLaunchKernel", 20, 10, **host, args={"correlation": corr})
        ran("kernel", "gemm<float>", 200, 300, **stream, args={
            "device": 0, "stream": 7, "correlation": corr, "External id": corr,
            "grid": [8, 1, 1], "block": [128, 1, 1], "est. achieved occupancy %": 50,
        })  # fmt: skip
        ran("kernel", "ncclDevKernel_AllReduce", 510, 50, **stream, args={
            "device": 0, "stream": 8, "correlation": 99, "Collective name": "allreduce",
            "In msg nelems": 12, "dtype": "Float", "Group size": 2,
        })  # fmt: skip
        ran("gpu_memcpy", "Memcpy HtoD", 600, 20, **stream, args={
            "device": 0, "stream": 7, "correlation": 98, "bytes": 4096,
        })  # fmt: skip
        events.append({
            "ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": at + 30, "s": "t",
            **host, "args": {"Total Allocated": 64, "Bytes": 64, "Addr": 1, "Device Type": 1,
                             "Device Id": 0, "Total Reserved": 128},
        })  # fmt: skip
    return events


def kineto(path: Path) -> Path:
    head = {"schemaVersion": 1, "distributedInfo": {"rank": 0, "world_size": 2}}
    path.write_text(json.dumps({**head, "traceEvents": kineto_events()}))
    return path


def kineto_list(path: Path) -> Path:
    path.write_text(json.dumps(kineto_events(), indent=1))
    return path


def kineto_packed(path: Path) -> Path:
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": kineto_events()}).encode(), mtime=0))
    return path


def kineto_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for rank in range(2):
            archive.writestr(f"rank{rank}.json", json.dumps({"traceEvents": kineto_events()}))
    return path


def xplane(path: Path) -> Path:
    host, gpu = XPlane("/host:CPU"), XPlane("/device:GPU:1")
    host.line(77, "python", [
        ("train", 1000, 900, {"step_num": 1, "_r": 1}),
        ("IteratorGetNextOp::DoCompute", 1010, 100, {}),
        (("model/dense/MatMul:MatMul", "MatMul"), 1200, 100, {}),
        ("cuLaunchKernel", 1220, 20, {"correlation_id": 5}),
    ])  # fmt: skip
    gpu.line(1, "Stream #13(Compute)", [
        ("sgemm_128", 1950, 300, {"correlation_id": 5, "tf_op": "model/dense/MatMul:MatMul",
         "kernel_details": "regs:32 grid:8,1,1 block:128,1,1 occ_pct:50"}),
        ("MemcpyH2D", 2500, 40, {"memcpy_details": "size:4096 async:1"}),
    ])  # fmt: skip
    path.write_bytes(xspace(gpu, host, environment(EPOCH_NS)))
    return path


def nsys(path: Path) -> Path:
    texts = ["", "gemm<float>", "cudaLaunchKernel_v7000", "ncclDevKernel_AllReduce"]
    tables: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
        "META_DATA_EXPORT": ("name value", [("EXPORT_PRODUCT_VERSION", "2024.4")]),
        "StringIds": ("id value", list(enumerate(texts))),
        "TARGET_INFO_SESSION_START_TIME": ("utcEpochNs", [(EPOCH_NS,)]),
        "CUPTI_ACTIVITY_KIND_KERNEL": (
            "start end deviceId streamId correlationId globalPid demangledName shortName",
            [(1500, 1800, 0, 7, 21, GLOBAL_PID, 1, 1), (1900, 1990, 0, 7, 22, GLOBAL_PID, 3, 3)],
        ),
        "CUPTI_ACTIVITY_KIND_MEMCPY": (
            "start end deviceId streamId correlationId globalPid bytes copyKind",
            [(1200, 1250, 0, 7, 20, GLOBAL_PID, 4096, 1)],
        ),
        "CUPTI_ACTIVITY_KIND_RUNTIME": (
            "start end eventClass globalTid correlationId nameId",
            [(1110, 1130, 0, GLOBAL_TID, 21, 2), (1140, 1150, 0, GLOBAL_TID, 22, 2)],
        ),
        "NVTX_EVENTS": (
            "start end eventType text globalTid",
            [(1000, 1990, 59, "step 0", GLOBAL_TID),
             (1080, 1200, 59, "aten::mm, seq = 3, op_id = 4, sizes = [[2, 3]]", GLOBAL_TID)],
        ),
    }  # fmt: skip
    with closing(sqlite3.connect(path)) as connection:
        for table, (columns, rows) in tables.items():
            names = columns.split()
            connection.execute(f"CREATE TABLE {table} ({', '.join(names)})")
            places = ", ".join("?" * len(names))
            connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        connection.commit()
    return path


def speedscope(path: Path) -> Path:
    path.write_text(json.dumps({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "shared": {"frames": [{"name": "main", "file": "a.py", "line": 3}, {"name": "tl_step_1"},
                              {"name": "work"}]},
        "profiles": [
            {"type": "evented", "name": "one", "unit": "microseconds", "startValue": 0,
             "endValue": 30, "events": [
                 {"type": "O", "frame": 0, "at": 0}, {"type": "O", "frame": 1, "at": 5},
                 {"type": "C", "frame": 1, "at": 20}, {"type": "C", "frame": 0, "at": 30}]},
            {"type": "sampled", "name": "two", "unit": "seconds", "startValue": 0, "endValue": 3,
             "samples": [[0], [0, 1, 2]], "weights": [1, 2]},
        ],
    }))  # fmt: skip
    return path


def pyspy(path: Path) -> Path:
    path.write_text("".join(f"main (a.py:{n});tl_step_{n} (a.py:9);work (b.py:3) {n + 1}\n"
                            for n in range(9)))  # fmt: skip
    return path


def pyspy_chrome(path: Path) -> Path:
    place = {"cat": "py-spy", "pid": 7, "tid": 7}
    args = {"filename": "a.py", "line": 3}
    path.write_text(json.dumps([
        {"ph": ph, "name": name, "ts": at, "args": args, **place}
        for ph, name, at in (("B", "main", 0), ("B", "work", 5), ("E", "work", 9), ("E", "main", 9))
    ], separators=(",", ":")))  # fmt: skip
    return path


def memory_snapshot(path: Path) -> Path:
    stack = [{"filename": "/home/me/train.py", "line": 42, "name": "step"}]

    def action(what: str, at_us: int, address: int, size: int) -> dict[str, Any]:
        return {"action": what, "addr": address, "size": size, "stream": 0,
                "time_us": EPOCH_NS // 1000 + at_us, "frames": stack}  # fmt: skip

    actions = [
        action("segment_alloc", 0, BASE_ADDRESS, 1 << 20),
        action("alloc", 1, BASE_ADDRESS, 1000),
        action("alloc", 2, BASE_ADDRESS + 1024, 500),
        action("free_requested", 3, BASE_ADDRESS, 1000),
        action("free_completed", 3, BASE_ADDRESS, 1000),
    ]
    held = [{"address": BASE_ADDRESS + 1024, "size": 512, "requested_size": 500,
             "state": "active_allocated", "frames": stack}]  # fmt: skip
    return dump(snapshot(actions, held), path)


def memory_timeline(path: Path) -> Path:
    path.write_text(json.dumps([[1000 + n, 1 + n % 3, 64 * n, n % 7] for n in range(40)]))
    return path


def events(path: Path) -> Path:
    def record(body: bytes) -> bytes:
        length = struct.pack("<Q", len(body))
        return (length + struct.pack("<I", masked(of_few(length))) + body
                + struct.pack("<I", masked(of_few(body))))  # fmt: skip

    data = b""
    for step in range(5):
        value = b"\x0a\x04loss\x15" + struct.pack("<f", 1 / (step + 1))
        summary = b"\x0a" + bytes([len(value)]) + value
        body = (b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + bytes([step])
                + b"\x2a" + bytes([len(summary)]) + summary)  # fmt: skip
        data += record(body)
    path.write_bytes(data)
    return path


def packed_fixture(path: Path) -> Path:
    shutil.copy(FIXTURES / "rank0.pt.trace.json.gz", path)
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "a.pt.trace.json": kineto,
    "list.json": kineto_list,
    "packed.json.gz": kineto_packed,
    "two.zip": kineto_zip,
    "recorded.pt.trace.json.gz": packed_fixture,
    "a.xplane.pb": xplane,
    "a.sqlite": nsys,
    "a.speedscope.json": speedscope,
    "a.raw": pyspy,
    "pyspy.json": pyspy_chrome,
    "a.pickle": memory_snapshot,
    "raw.json": memory_timeline,
    "events.out.tfevents.1.h": events,
}
"""File name -> what writes it."""
