"""Nsight Systems' sqlite exports as traces."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from profile_files import GLOBAL_PID, GLOBAL_TID, PID, nsys_export, real
from tracelens.cli import main
from tracelens.convert import nsys
from tracelens.convert.importers import importer_of
from tracelens.errors import TraceError
from tracelens.storage.reader import open_trace
from tracelens.storage.verify import verify

EPOCH_NS = 1_700_000_000_000_000_000
TEXTS = ["[Unknown]", "void gemm<float>(int)", "gemm", "cudaLaunchKernel_v7000", "cudaLaunchKernel",
         "ncclDevKernel_AllReduce(args)", "MPI_Allreduce", "cudaMemcpyAsync_v3020"]  # fmt: skip

MM = "aten::mm, seq = 3, op_id = 4, sizes = [[2, 3], [3, 4]]"


def export(
    path: Path, *, rank: int | None = None, meta: str = "META_DATA_EXPORT", **more: Any
) -> Path:
    """Two steps: a PyTorch op in a range launches a kernel, another process runs one too."""
    tables: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
        meta: ("name value", [("EXPORT_PRODUCT_VERSION", "2024.4")]),
        "StringIds": ("id value", list(enumerate(TEXTS))),
        "TARGET_INFO_SESSION_START_TIME": ("utcEpochNs", [(EPOCH_NS,)]),
        "TARGET_INFO_SYSTEM_ENV": ("name value", [("Hostname", "gpu7")]),
        "CUPTI_ACTIVITY_KIND_KERNEL": (
            "start end deviceId streamId correlationId globalPid demangledName shortName"
            " gridX gridY gridZ blockX blockY blockZ registersPerThread",
            [
                (1500, 1800, 2, 7, 21, GLOBAL_PID, 1, 2, 8, 1, 1, 128, 1, 1, 32),
                (2500, 2900, 2, 7, 22, GLOBAL_PID, 1, 2, 8, 1, 1, 128, 1, 1, 32),
                (2950, 3050, 2, 9, 23, GLOBAL_PID, 5, 5, 1, 1, 1, 32, 1, 1, 16),
            ],
        ),
        "CUPTI_ACTIVITY_KIND_MEMCPY": (
            "start end deviceId streamId correlationId globalPid bytes copyKind srcKind dstKind",
            [(1200, 1250, 2, 7, 20, GLOBAL_PID, 4096, 1, 0, 2)],
        ),
        "CUPTI_ACTIVITY_KIND_RUNTIME": (
            "start end eventClass globalTid correlationId nameId",
            [
                (1090, 1120, 0, GLOBAL_TID, 20, 7),
                (1100, 1140, 67, GLOBAL_TID, 21, 4),
                (1110, 1130, 0, GLOBAL_TID, 21, 3),
                (2110, 2130, 0, GLOBAL_TID, 22, 3),
                (2140, 2150, 0, GLOBAL_TID, 23, 3),
            ],
        ),
        "NVTX_EVENTS": (
            "start end eventType text globalTid textId domainId",
            [
                (1000, 1900, 59, "step 0", GLOBAL_TID, None, 0),
                (2000, 2800, 59, "Step 1", GLOBAL_TID, None, 0),
                (1050, 1300, 59, "forward", GLOBAL_TID, None, 0),
                (
                    1080,
                    1200,
                    59,
                    "aten::mm, seq = 3, op_id = 4, sizes = [[2, 3], [3, 4]]",
                    GLOBAL_TID,
                    None,
                    0,
                ),
                (2090, 2200, 59, "MmBackward0, seq = 3, op_id = 9", GLOBAL_TID, None, 0),
                (900, None, 34, "a mark", GLOBAL_TID, None, 0),
            ],
        ),
        **more,
    }
    if rank is not None:
        tables["MPI_RANKS"] = "globalPid rank", [(GLOBAL_PID, rank)]
    return nsys_export(path, tables)


@pytest.mark.parametrize("meta", ["META_DATA_EXPORT", "EXPORT_META_DATA"])
def test_kernels_calls_and_ranges_of_both_generations(meta: str, tmp_path: Path) -> None:
    out = tmp_path / "out.tltrace"
    path = export(tmp_path / "a.sqlite", meta=meta)
    result = importer_of(path)(path, out)
    assert result.problems == () and verify(out) == []
    with open_trace(out) as trace:
        assert trace.manifest.epoch_unix_ns == EPOCH_NS
        (shard,) = trace.shards()
        assert (shard.host, shard.pid) == ("gpu7", PID)
        assert trace.sql(
            "SELECT k.kind, k.name, k.device, k.stream, k.step, k.grid, k.size_bytes,"
            " o.name, s.name FROM kernels k LEFT JOIN ops o USING (op_id)"
            " LEFT JOIN spans s USING (span_id)"
            " ORDER BY k.start_ns"
        ) == [
            ("memcpy", "Memcpy HtoD (Pageable -> Device)", 2, 7, 0, None, 4096, "aten::mm",
             "cudaMemcpyAsync"),
            ("kernel", "void gemm<float>(int)", 2, 7, 0, "8,1,1", None, "aten::mm",
             "cudaLaunchKernel"),
            ("kernel", "void gemm<float>(int)", 2, 7, 1, "8,1,1", None, "MmBackward0",
             "cudaLaunchKernel"),
            ("comm", "ncclDevKernel_AllReduce(args)", 2, 9, 1, "1,1,1", None, "MmBackward0",
             "cudaLaunchKernel"),
        ]  # fmt: skip
        # The call that is told twice is one call.
        assert trace.sql("SELECT count(*) FROM spans WHERE kind = 'runtime'") == [(4,)]
        assert [(each["step"], each["start_ns"]) for each in trace.steps()] == [
            (0, 1000),
            (1, 2000),
        ]
        query = "SELECT phase, fwd_op_id, in_shapes FROM ops ORDER BY op_id"
        assert trace.sql(query) == [("forward", None, "[[2, 3], [3, 4]]"), ("backward", 0, None)]
        assert trace.sql(
            "SELECT name, pid, tid, start_ns, duration_ns FROM spans"
            " WHERE kind = 'device_annotation' ORDER BY start_ns, name"
        ) == [
            ("forward", 2, 7, 1200, 600),
            ("step 0", 2, 7, 1200, 600),
            ("Step 1", 2, 7, 2500, 400),
            ("Step 1", 2, 9, 2950, 100),
        ]


def test_tables_that_nsight_did_not_make_are_no_error(tmp_path: Path) -> None:
    path = nsys_export(
        tmp_path / "a.sqlite",
        {
            "StringIds": ("id value", [(1, "k")]),
            "CUPTI_ACTIVITY_KIND_KERNEL": (
                "start end deviceId streamId correlationId demangledName",
                [(5, 9, 0, 1, 1, 1)],
            ),
        },
    )
    result = nsys.convert(path, tmp_path / "out.tltrace")
    assert (result.kernels, result.problems) == (1, ())


def test_memory_metrics_and_waits_are_kept(tmp_path: Path) -> None:
    path = export(
        tmp_path / "a.sqlite",
        CUDA_GPU_MEMORY_USAGE_EVENTS=(
            "start globalPid deviceId address bytes memoryOperationType",
            [(100, GLOBAL_PID, 2, 64, 1024, 0), (300, GLOBAL_PID, 2, 64, 1024, 1)],
        ),
        TARGET_INFO_GPU_METRICS=("typeId metricId metricName", [(258, 1, "SMs Active [%]")]),
        GPU_METRICS=("timestamp typeId metricId value", [(10, 258, 1, 40), (20, 258, 1, 60)]),
        CUPTI_ACTIVITY_KIND_SYNCHRONIZATION=(
            "start end deviceId streamId correlationId globalPid syncType",
            [(3000, 3100, 2, 7, 30, GLOBAL_PID, 3)],
        ),
        MPI_COLLECTIVES_EVENTS=("start end globalTid textId", [(2600, 2700, GLOBAL_TID, 6)]),
        OSRT_API=("start end globalTid nameId", [(1, 2, GLOBAL_TID, 1)]),
    )
    nsys.convert(path, tmp_path / "out.tltrace")
    with open_trace(tmp_path / "out.tltrace") as trace:
        query = "SELECT device, size_bytes, allocated_bytes FROM memory ORDER BY t_ns"
        assert trace.sql(query) == [
            ("cuda:2", 1024, 1024), ("cuda:2", -1024, 0),
        ]  # fmt: skip
        assert trace.sql("SELECT name, device, value FROM counters ORDER BY t_ns") == [
            ("SMs Active [%]", "cuda:2", 40.0), ("SMs Active [%]", "cuda:2", 60.0),
        ]  # fmt: skip
        assert trace.sql("SELECT name, pid, tid FROM spans WHERE kind = 'sync'") == [
            ("Stream Sync", 2, 7)
        ]
        assert trace.sql("SELECT kind FROM spans WHERE name = 'MPI_Allreduce'") == [("other",)]
        assert any("1 of OSRT_API" in note["message"] for note in trace.notes())


def test_a_folder_has_a_rank_for_each_file_and_the_same_rank_twice_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    export(folder / "a.sqlite", rank=1)
    export(folder / "b.sqlite", rank=0)
    export(folder / "c.sqlite", rank=1)
    (folder / "torn.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 50)
    result = nsys.convert(folder, tmp_path / "out.tltrace")
    assert any("c.sqlite says rank 1, as a.sqlite does" in each for each in result.problems)
    assert any("torn.sqlite: not a readable sqlite file" in each for each in result.problems)
    with open_trace(tmp_path / "out.tltrace") as trace:
        assert trace.sql("SELECT rank, count(*) FROM kernels GROUP BY 1 ORDER BY 1") == [
            (0, 4), (1, 4), (2, 4),
        ]  # fmt: skip


def test_several_exports_given_to_the_command_are_the_ranks_of_one_trace(tmp_path: Path) -> None:
    files = [str(export(tmp_path / f"rank_{rank}.sqlite")) for rank in (1, 0)]
    assert main(["import", *files, "-o", str(tmp_path / "t")]) == 0
    with open_trace(tmp_path / "t") as trace:
        assert trace.ranks() == [0, 1]


def test_a_damaged_export_keeps_what_can_be_read(tmp_path: Path) -> None:
    path = export(tmp_path / "a.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        for change in (
            "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = 'x' WHERE correlationId = 22",
            "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET correlationId = 'x' WHERE correlationId = 23",
            f"UPDATE CUPTI_ACTIVITY_KIND_MEMCPY SET deviceId = {1 << 40}",
            "UPDATE NVTX_EVENTS SET text = '' WHERE text = 'forward'",
            f"UPDATE NVTX_EVENTS SET end = {(1 << 63) - 1} WHERE text = 'Step 1'",
        ):
            connection.execute(change)
        connection.commit()
    result = nsys.convert(path, tmp_path / "out.tltrace")
    assert result.kernels == 1
    assert any("4 rows cannot be read" in each for each in result.problems)
    with open_trace(tmp_path / "out.tltrace") as trace:
        assert trace.sql("SELECT name FROM spans WHERE kind = 'annotation'") == [("(unnamed)",)]


def test_a_schema_of_damaged_bytes_is_refused(tmp_path: Path) -> None:
    path = export(tmp_path / "a.sqlite")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE CUPTI", b"CREATE TAB\xbbE CUPTI", 1))
    with pytest.raises(TraceError, match="not a readable sqlite file"):
        nsys.convert(path, tmp_path / "out.tltrace")


def test_other_files_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = nsys_export(tmp_path / "foreign.sqlite", {"people": ("name", [("Ada",)])})
    with pytest.raises(TraceError, match="not an export of Nsight Systems"):
        nsys.convert(foreign, tmp_path / "out.tltrace")
    report = tmp_path / "run.nsys-rep"
    report.write_bytes(b"\x01\x02")
    assert main(["import", str(report), "-o", str(tmp_path / "t")]) == 3
    assert "nsys export --type sqlite run.nsys-rep" in capsys.readouterr().err


def test_the_real_export_is_counted_as_its_own_tables_say(tmp_path: Path) -> None:
    path = real("nsys_saxpy_mpi_sqlite", "saxpy-mpi-cuda_nsys_perlmutter0.sqlite")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        wanted = [
            connection.execute(f"SELECT count(*), sum(end - start) FROM CUPTI_ACTIVITY_KIND_{each}")
            .fetchone()
            for each in ("KERNEL", "MEMCPY")
        ]  # fmt: skip
    out = tmp_path / "out.tltrace"
    assert importer_of(path)(path, out).problems == ()
    with open_trace(out) as trace:
        assert (
            trace.sql("SELECT count(*), sum(duration_ns) FROM kernels GROUP BY kind ORDER BY kind")
            == wanted
        )
        assert trace.sql("SELECT count(*) FROM kernels WHERE span_id IS NULL") == [(0,)]
        assert trace.sql(
            "SELECT count(*) FROM spans WHERE kind = 'device_annotation' AND name = 'saxpy'"
        ) == [(5,)]
