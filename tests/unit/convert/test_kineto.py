"""Kineto's profiles of every dialect, as what they say: ops, calls, kernels, steps, memory."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tracelens.cli import main
from tracelens.convert import kineto, kineto_bytes
from tracelens.convert.importers import name_of
from tracelens.storage.reader import open_trace

FIXTURES = Path(__file__).parents[3] / "fixtures" / "profiles"
BASE_NS = 1_790_857_026_000_000_000
HOST, DEVICE = {"pid": 100, "tid": 100}, {"pid": 0, "tid": 7}


def ran(
    name: str, at: float, length: float, cat: str = "cpu_op", where: Any = None, **args: Any
) -> dict[str, Any]:
    """Return a complete event; times in µs."""
    place = HOST if where is None else where
    return {"ph": "X", "cat": cat, "name": name, **place, "ts": at, "dur": length, "args": args}


def kernel(name: str, at: float, length: float, corr: int, **args: Any) -> dict[str, Any]:
    """Return a kernel on stream 7 of device 0."""
    told = {"device": 0, "stream": 7, "correlation": corr, **args}
    return ran(name, at, length, "kernel", DEVICE, **told)


def call(name: str, at: float, length: float, corr: int) -> dict[str, Any]:
    """Return a call of the runtime."""
    return ran(name, at, length, "cuda_runtime", correlation=corr)


def written(path: Path, events: list[dict[str, Any]], **head: Any) -> Path:
    """Write a profile."""
    path.write_text(json.dumps({"schemaVersion": 1, **head, "traceEvents": events}))
    return path


def imported(path: Path, *more: Path) -> tuple[Any, Any]:
    """Import profiles; return the reader and the result."""
    target = path.with_name("out.tltrace")
    result = kineto.convert_files([path, *more], target, force=True)
    return open_trace(target), result


def rows(reader: Any, query: str) -> list[tuple[Any, ...]]:
    """Return a query's rows."""
    return [tuple(row) for row in reader.sql(query)]


def test_a_recorded_training_has_its_lines_modules_phases_and_steps(tmp_path: Path) -> None:
    target = tmp_path / "out.tltrace"
    result = kineto.convert(FIXTURES / "cpu_stacks.pt.trace.json.gz", target)
    reader = open_trace(target)
    assert result.problems == () and result.steps == 2 and result.kernels == 0
    assert rows(reader, "SELECT step FROM steps ORDER BY step") == [(2,), (3,)]
    forward = rows(
        reader,
        "SELECT DISTINCT module, phase, file, function FROM ops WHERE name = 'aten::addmm'",
    )
    assert sorted(forward) == [
        ("Net_0.Linear_0", "forward", "record.py", "forward"),
        ("Net_0.Linear_1", "forward", "record.py", "forward"),
    ]
    backward = rows(
        reader,
        "SELECT DISTINCT b.module, b.file, b.function, f.name FROM ops b JOIN ops f "
        "ON b.fwd_op_id = f.op_id WHERE b.name = 'AddmmBackward0'",
    )
    assert sorted(backward) == [
        ("Net_0.Linear_0", "record.py", "forward", "aten::addmm"),
        ("Net_0.Linear_1", "record.py", "forward", "aten::addmm"),
    ]
    phases = {phase for (phase,) in rows(reader, "SELECT DISTINCT phase FROM ops")}
    assert phases == {"data", "forward", "backward", "optimizer"}
    kinds = {kind for (kind,) in rows(reader, "SELECT DISTINCT kind FROM spans")}
    assert kinds == {"python", "module", "annotation", "step", "data"}
    outside = rows(
        reader,
        "SELECT count(*) FROM ops c JOIN ops p ON c.parent_id = p.op_id WHERE c.op_id < p.op_id "
        "OR c.start_ns < p.start_ns OR c.start_ns + c.duration_ns > p.start_ns + p.duration_ns",
    )
    assert outside == [(0,)]
    held = "SELECT sum(size_bytes) > 0, min(device), count(op_id) > 0 FROM memory"
    assert rows(reader, held) == [(True, "cpu", True)]


def test_ranks_of_one_run_share_a_clock_and_a_trace(tmp_path: Path) -> None:
    target = tmp_path / "out.tltrace"
    result = kineto.convert(FIXTURES, target)
    # Three files: two ranks, and a recording that names no rank and so is the next free one.
    assert [line.rpartition(": ")[2] for line in result.problems] == ["imported as rank 2"]
    reader = open_trace(target)
    assert reader.ranks() == [0, 1, 2]
    starts = rows(reader, "SELECT rank, min(start_ns) FROM ops WHERE rank < 2 GROUP BY rank")
    assert all(0 <= start < 60e9 for _, start in starts)
    reduced = "SELECT count(DISTINCT rank) FROM ops WHERE name = 'c10d::allreduce_'"
    assert rows(reader, reduced) == [(2,)]


def test_what_is_read_does_not_depend_on_where_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (1 << 22, 1 << 14, 3001):
        monkeypatch.setattr(kineto_bytes, "PIECE_BYTES", size)
        target = tmp_path / f"{size}.tltrace"
        kineto.convert(FIXTURES / "cpu_stacks.pt.trace.json.gz", target)
        reader = open_trace(target)
        found.append(
            [
                rows(reader, "SELECT * EXCLUDE (kind) FROM ops ORDER BY op_id"),
                rows(reader, "SELECT name, start_ns, parent_id FROM spans ORDER BY span_id"),
                rows(reader, "SELECT t_ns, size_bytes, op_id FROM memory ORDER BY ALL"),
            ]
        )
    assert repr(found[0]) == repr(found[1]) == repr(found[2])


def test_times_are_exact_to_the_nanosecond(tmp_path: Path) -> None:
    events = (
        '[{"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":1,'
        '"ts":1712195495519689.047,"dur":63.813},'
        '{"ph":"X","cat":"cpu_op","name":"b","pid":1,"tid":1,'
        '"ts":1712195495519699.048,"dur":0.001},'
        '{"ph":"X","cat":"cpu_op","name":"c","pid":1,"tid":1,"ts":1712195495519700,"dur":2}]'
    )
    path = tmp_path / "a.json"
    path.write_text(f'{{"traceEvents":{events}}}')
    reader, _ = imported(path)
    assert reader.manifest.epoch_unix_ns == 1_712_195_495_519_689_047
    found = rows(reader, "SELECT name, start_ns, duration_ns FROM ops ORDER BY op_id")
    assert found == [("a", 0, 63813), ("b", 10001, 1), ("c", 10953, 2000)]


def test_times_count_from_the_base_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [ran("a", 5.25, 1.5)], baseTimeNanoseconds=BASE_NS)
    reader, _ = imported(path)
    assert reader.manifest.epoch_unix_ns == BASE_NS + 5250
    later = tmp_path / "b.json"
    text = json.dumps([ran("a", 5.25, 1.5)])
    later.write_text(f'{{"traceEvents": {text}, "baseTimeNanoseconds": {BASE_NS}}}')
    assert imported(later)[0].manifest.epoch_unix_ns == BASE_NS + 5250


def test_kernels_belong_to_the_op_around_their_launch(tmp_path: Path) -> None:
    events = [
        ran("ProfilerStep#5", 0, 100, "user_annotation"),
        ran("aten::linear", 10, 40, **{"External id": 3}),
        ran("aten::addmm", 12, 30, **{"External id": 4, "Input Dims": [[8, 2], []]}),
        call("cudaLaunchKernel", 20, 5, 77),
        kernel(
            "gemm", 110, 50, 77,
            **{"grid": [2, 1, 1], "block": [128, 1, 1], "est. achieved occupancy %": 31},
        ),
        ran("Memcpy HtoD", 170, 5, "gpu_memcpy", DEVICE, device=0, stream=7, bytes=64),
        ran("ProfilerStep#6", 100, 100, "user_annotation"),
    ]  # fmt: skip
    reader, result = imported(written(tmp_path / "a.json", events))
    assert result.problems == () and result.kernels == 2
    found = rows(
        reader,
        "SELECT k.kind, k.name, k.step, o.name, s.name, k.grid, k.block, k.occupancy, "
        "k.size_bytes FROM kernels k LEFT JOIN ops o ON o.op_id = k.op_id "
        "LEFT JOIN spans s ON s.span_id = k.span_id ORDER BY k.kern_id",
    )
    # It ran in step 6 and was launched in step 5; the copy has no call, so its own time counts.
    assert found == [
        ("kernel", "gemm", 5, "aten::addmm", "cudaLaunchKernel", "[2, 1, 1]", "[128, 1, 1]", 31,
         None),
        ("memcpy", "Memcpy HtoD", 6, None, None, None, None, None, 64),
    ]  # fmt: skip
    assert rows(reader, "SELECT in_shapes FROM ops WHERE name = 'aten::addmm'") == [
        ("[[8, 2], []]",)
    ]


def test_one_launch_of_a_graph_has_many_kernels_and_they_may_overlap(tmp_path: Path) -> None:
    events = [
        call("cudaGraphLaunch", 0, 5, 9),
        *(kernel(f"node{i}", 10 + 3 * i, 5, 9, **{"graph node id": i}) for i in range(4)),
    ]
    reader, result = imported(written(tmp_path / "a.json", events))
    assert result.kernels == 4
    assert rows(reader, "SELECT count(*), count(DISTINCT span_id) FROM kernels") == [(4, 1)]
    assert rows(reader, "SELECT args FROM kernels WHERE name = 'node3'") == [
        ('{"graph node id": 3}',)
    ]


def test_kernels_without_a_launch_are_kept_and_counted(tmp_path: Path) -> None:
    events = [
        ran("aten::mul", 0, 5, **{"External id": 8}),
        kernel("named", 10, 5, 50, **{"External id": 8}),
        kernel("alone", 20, 5, 51),
    ]
    reader, _ = imported(written(tmp_path / "a.json", events))
    found = "SELECT k.name, o.name FROM kernels k LEFT JOIN ops o ON o.op_id = k.op_id ORDER BY 1"
    assert rows(reader, found) == [("alone", None), ("named", "aten::mul")]
    notes = "SELECT message FROM events WHERE message LIKE '%no call%'"
    assert rows(reader, notes)[0][0].startswith("1 of 2 kernels")


@pytest.mark.parametrize("listed", [False, True])
def test_names_of_2020_mean_the_same(tmp_path: Path, listed: bool) -> None:
    host = {"pid": 100, "tid": "100"}
    events = [
        ran("ProfilerStep#2", 0, 90, "Operator", host),
        ran("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 1, 5, "Operator", host),
        ran(
            "aten::mm", 10, 20, "Operator", host,
            **{"External id": 2, "Input dims": [[2, 2]],
               "Call stack": "/x/site-packages/torch/nn/functional.py(3): f;net.py(9): forward"},
        ),
        ran("cudaLaunchKernel", 12, 2, "Runtime", host, correlation=4),
        ran("sgemm", 30, 9, "Kernel", {"pid": 1, "tid": "stream 7"}, correlation=4),
        ran("Memset", 40, 1, "Memset", {"pid": 1, "tid": "stream 7"}, device=1, stream=7),
        {"ph": "i", "s": "t", "name": "[memory]", "pid": 100, "tid": 100, "ts": 15,
         "args": {"Device Type": 1, "Device Id": 0, "Bytes": 512}},
        {"ph": "X", "cat": "Trace", "ts": 0, "dur": 99, "pid": "Traces", "tid": "PyTorch Profiler",
         "name": "PyTorch Profiler (0)", "args": {"Op count": 0}},
    ]  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps(events if listed else {"traceEvents": events}))
    reader, result = imported(path)
    assert (result.problems, result.ops, result.steps, result.kernels) == ((), 1, 1, 2)
    assert rows(reader, "SELECT name, file, line, function, step, in_shapes FROM ops") == [
        ("aten::mm", "net.py", 9, "forward", 2, "[[2, 2]]")
    ]
    assert rows(reader, "SELECT kind FROM spans ORDER BY start_ns") == [
        ("step",), ("data",), ("runtime",)
    ]  # fmt: skip
    assert rows(reader, "SELECT kind, device, stream FROM kernels ORDER BY start_ns") == [
        ("kernel", 1, 7), ("memset", 1, 7)
    ]  # fmt: skip
    found = rows(reader, "SELECT device, size_bytes FROM memory")
    assert found == [("cuda:0", 512)]


def test_arrows_tie_backward_ops_without_sequence_numbers(tmp_path: Path) -> None:
    arrow = {"cat": "forward_backward", "name": "fwdbwd", "id": 6}
    events = [
        ran("aten::mul", 0, 5),
        {"ph": "s", **arrow, **HOST, "ts": 0},
        ran("MulBackward0", 20, 5, where={"pid": 100, "tid": 101}),
        {"ph": "f", "bp": "e", **arrow, "pid": 100, "tid": 101, "ts": 20},
    ]
    reader, _ = imported(written(tmp_path / "a.json", events))
    assert rows(reader, "SELECT name, fwd_op_id FROM ops ORDER BY op_id") == [
        ("aten::mul", None), ("MulBackward0", 0)
    ]  # fmt: skip


def test_collectives_have_their_group_size_and_type(tmp_path: Path) -> None:
    told = {
        "Collective name": "allreduce", "In msg nelems": 1000, "Out msg nelems": 1000,
        "Group size": 2, "dtype": "BFloat16", "Process Group Name": "0",
    }  # fmt: skip
    events = [
        ran("record_param_comms", 0, 9, **told),
        call("cudaLaunchKernelExC", 2, 2, 5),
        kernel("ncclDevKernel_Generic(x)", 10, 9, 5),
        kernel("ncclDevKernel_AllGather_RING_LL", 20, 9, 6, **{**told, "Collective name": "_x"}),
    ]
    reader, _ = imported(written(tmp_path / "a.json", events))
    query = (
        "SELECT kind, collective, comm_group, comm_ranks, comm_dtype, size_bytes FROM kernels "
        "ORDER BY start_ns"
    )
    assert rows(reader, query) == [
        ("comm", "allreduce", "0", 2, "BFloat16", 2000),
        ("comm", "x", "0", 2, "BFloat16", 2000),
    ]


def test_counters_syncs_and_device_ranges_are_kept(tmp_path: Path) -> None:
    events = [
        {"ph": "C", "name": "GPU 0 Utilization", "pid": 0, "ts": 3, "args": {"GPU": 0.5}},
        ran("Stream Sync", 4, 5, "cuda_sync", DEVICE, cuda_sync_kind="Stream", stream=7),
        ran("loss", 4, 9, "gpu_user_annotation", DEVICE),
        ran("mtia_kernel", 5, 5, "mtia_ccp_events", {"pid": 3, "tid": 1}, device=3, stream=1),
        ran("new_kernel", 6, 5, "npu_kernel", {"pid": 3, "tid": 1},
            device=3, stream=1, correlation=4),
        ran("mtiaLaunch", 3, 1, "mtia_runtime", correlation=4),
    ]  # fmt: skip
    reader, result = imported(written(tmp_path / "a.json", events))
    assert result.problems == ()
    assert rows(reader, "SELECT name, value FROM counters") == [("GPU", 0.5)]
    assert rows(reader, "SELECT kind FROM spans ORDER BY start_ns, kind") == [
        ("runtime",), ("device_annotation",), ("sync",)
    ]  # fmt: skip
    found = rows(reader, "SELECT name, device, span_id IS NULL FROM kernels ORDER BY start_ns")
    assert found == [("mtia_kernel", 3, True), ("new_kernel", 3, False)]


def test_archives_and_folders_are_read_rank_by_rank(tmp_path: Path) -> None:
    texts = {
        f"run/worker{rank}.pt.trace.json": json.dumps(
            {"distributedInfo": {"rank": rank, "world_size": 3}, "traceEvents": [ran("a", rank, 1)]}
        ).encode()
        for rank in range(3)
    }
    packed = tmp_path / "all.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    zipped = tmp_path / "all.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"{name}.gz", gzip.compress(text))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in texts.items():
        (folder / Path(name).name).write_bytes(text)
    for path in (packed, zipped, folder):
        assert name_of(path) == "kineto"
        reader, result = imported(path)
        assert (reader.ranks(), result.problems) == ([0, 1, 2], ())


def test_a_missing_rank_and_a_second_file_of_a_rank_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rank(number: int, name: str) -> str:
        info = {"rank": number, "world_size": 4}
        return str(written(tmp_path / name, [ran("a", number, 1)], distributedInfo=info))

    files = [rank(0, "a.json"), rank(1, "b.json"), rank(3, "c.json"), rank(1, "d.json")]
    target = str(tmp_path / "out.tltrace")
    assert main(["import", *files, "-o", target]) == 0
    told = capsys.readouterr().err
    assert f"{files[3]}: rank 1 is imported from {files[1]} already: left out" in told
    assert "rank 2 of 4 missing" in told
    assert open_trace(target).ranks() == [0, 1, 3]


def test_one_file_of_many_ranks_is_a_whole_trace(tmp_path: Path) -> None:
    info = {"rank": 34, "world_size": 300}
    reader, result = imported(written(tmp_path / "a.json", [ran("a", 1, 1)], distributedInfo=info))
    assert (reader.ranks(), result.problems) == ([34], ())
    assert main(["verify", str(reader.path)]) == 0


def test_a_rank_is_told_by_the_name_of_a_file_that_does_not_say_it(tmp_path: Path) -> None:
    files = [written(tmp_path / f"rank{n}_iter3.json", [ran("a", n, 1)]) for n in (4, 2)]
    reader, result = imported(*files)
    assert (reader.ranks(), result.problems) == ([2, 4], ())
    assert main(["verify", str(reader.path)]) == 0


def phases_of(reader: Any) -> dict[str, str]:
    """Return the phase of each op by its name."""
    return dict(rows(reader, "SELECT name, phase FROM ops"))


def test_what_a_thread_of_the_engine_runs_is_backward_without_a_mark_too(tmp_path: Path) -> None:
    engine = {"pid": 100, "tid": 200}
    events = [
        ran("aten::mm", 0, 10, **{"Sequence number": 5, "Fwd thread id": 0}),
        ran("MmBackward0", 20, 10, where=engine, **{"Sequence number": 5, "Fwd thread id": 1}),
        ran("torch.distributed.ddp.reducer::copy_bucket_to_grad", 40, 10, where=engine),
        ran("aten::copy_", 42, 5, where=engine),
        ran("aten::add", 60, 10),
    ]
    reader, _ = imported(written(tmp_path / "a.json", events))
    phases = phases_of(reader)
    assert phases["torch.distributed.ddp.reducer::copy_bucket_to_grad"] == "backward"
    assert phases["aten::copy_"] == phases["MmBackward0"] == "backward"
    assert phases["aten::mm"] == phases["aten::add"] == "forward"


def test_a_program_that_differentiates_on_its_own_thread_keeps_its_forward_ops(
    tmp_path: Path,
) -> None:
    events = [
        ran("aten::mm", 0, 10, **{"Sequence number": 5, "Fwd thread id": 0}),
        ran("aten::mul", 12, 5),
        ran("MmBackward0", 20, 10, **{"Sequence number": 5, "Fwd thread id": 1}),
    ]
    reader, _ = imported(written(tmp_path / "a.json", events))
    assert phases_of(reader) == {
        "aten::mm": "forward", "aten::mul": "forward", "MmBackward0": "backward"
    }  # fmt: skip


def test_functions_of_the_engine_are_backward_where_nothing_numbers_them(tmp_path: Path) -> None:
    engine = {"pid": 100, "tid": 200}
    events = [
        ran("aten::relu", 0, 10),
        ran("ReluBackward1", 20, 10, where=engine),
        ran("aten::threshold_backward", 22, 5, where=engine),
        ran("torch::autograd::AccumulateGrad", 40, 10, where=engine),
    ]
    reader, _ = imported(written(tmp_path / "a.json", events))
    phases = phases_of(reader)
    assert phases.pop("aten::relu") == "forward"
    assert set(phases.values()) == {"backward"}
