"""Exports of profiles, judged by the tools that they are made for."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import trace_processor
from profile_files import real
from trace_builder import training_run
from tracelens.cli import main
from tracelens.convert import parquet, perfetto, perfetto_proto, speedscope_out, tensorboard_profile
from tracelens.convert.importers import importer_of
from tracelens.errors import ConfigError, TraceLensError
from tracelens.storage.bulk import BulkShard, Coded, Masked
from tracelens.storage.reader import TraceReader, open_trace

N_STEPS, N_OPS = 4, 6
EPOCH_NS = 1_700_000_000_123_456_789
STEP_NS, OP_NS, LOAD_NS = 1_000_000, 100_000, 250_000


def profile(path: Path, *, ranks: int = 2) -> Path:
    """A training: each step loads a batch, runs ops that launch kernels; two kernels overlap."""
    for rank in range(ranks):
        with BulkShard(
            path, rank, epoch_unix_ns=EPOCH_NS, world_size=ranks, host="gpu1", pid=100 + rank,
            clock_offset_ns=rank * 7,
        ) as shard:  # fmt: skip
            _fill(shard)
    return path


def _fill(shard: BulkShard) -> None:
    n = N_STEPS * N_OPS
    at = np.arange(n)
    step = at // N_OPS
    start = step * STEP_NS + LOAD_NS + (at % N_OPS) * OP_NS
    forward = np.where(at % N_OPS >= N_OPS // 2, at - N_OPS // 2, -1)
    for number in range(N_STEPS):
        shard.event("step", step=number, start_ns=number * STEP_NS, duration_ns=STEP_NS)
    shard.event("note", kind="test", severity="info", message="a note")
    shard.write("ops", {
        "op_id": at, "step": step, "ord": at % N_OPS, "name": Coded(at % 3, ["mm", "relu", "sum"]),
        "phase": Coded(forward >= 0, ["forward", "backward"]),
        "fwd_op_id": Masked(forward, forward < 0),
        "tid": 5, "start_ns": start, "duration_ns": OP_NS, "flags": 4096,
        "file": "train.py", "line": np.full(n, 12), "function": "step",
        "in_shapes": "[[2, 3]]", "in_dtypes": '["float32"]',
    })  # fmt: skip
    kinds = ["step", "data", "runtime", "python", "device_annotation"]
    rows: list[tuple[str, str, int, int, int, int, int]] = []
    for number in range(N_STEPS):
        begin = number * STEP_NS
        rows.append(("step", f"ProfilerStep#{number}", 100, 5, begin, STEP_NS, -1))
        load = "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"
        rows.append(("data", load, 100, 5, begin, LOAD_NS, -1))
        rows.append(("python", "train.py(12): step", 100, 5, begin + LOAD_NS, N_OPS * OP_NS, -1))
        for op in range(N_OPS):
            launch = begin + LOAD_NS + op * OP_NS + 10
            corr = number * N_OPS + op + 1
            rows.append(("runtime", "cudaLaunchKernel", 100, 5, launch, 5_000, corr))
        rows.append(
            ("device_annotation", f"ProfilerStep#{number}", 0, 7, begin + LOAD_NS, OP_NS, -1)
        )
    rows.sort(key=lambda row: (row[4], -row[5]))
    corr = np.array([row[6] for row in rows])
    shard.write("spans", {
        "span_id": np.arange(len(rows)), "kind": Coded([kinds.index(r[0]) for r in rows], kinds),
        "name": [row[1] for row in rows], "pid": [row[2] for row in rows],
        "tid": [row[3] for row in rows], "start_ns": [row[4] for row in rows],
        "duration_ns": [row[5] for row in rows], "step": [row[4] // STEP_NS for row in rows],
        "corr_id": Masked(corr, corr < 0), "op_id": Masked(corr - 1, corr < 0),
    })  # fmt: skip
    spans = {row[6]: place for place, row in enumerate(rows) if row[6] >= 0}
    shard.write("kernels", {
        "kern_id": at, "step": step, "op_id": at, "corr_id": at + 1,
        "span_id": [spans[each + 1] for each in range(n)],
        "kind": Coded(at % N_OPS == 5, ["kernel", "memcpy"]),
        "name": Coded(at % 2, ["gemm", "copy"]),
        "device": np.zeros(n), "stream": np.full(n, 7), "start_ns": start + 20_000,
        # Each lasts a little into the next, as with programmatic dependent launch.
        "duration_ns": np.full(n, OP_NS + 1), "grid": "8,1,1", "block": "64,1,1",
        "occupancy": np.full(n, 50.0), "args": '{"blocks per SM": 2.0}',
    })  # fmt: skip
    times = np.arange(8) * 1000
    shard.write("memory", {
        "t_ns": times, "step": np.zeros(8), "device": "cuda:0",
        "size_bytes": np.array([100, -50] * 4), "allocated_bytes": np.array([100, 50] * 4),
        "reserved_bytes": np.full(8, 4096), "address": np.arange(8),
    })  # fmt: skip
    shard.write("counters", {"t_ns": times, "name": "GPU power", "device": "cuda:0",
                             "value": np.linspace(100, 200, 8)})  # fmt: skip
    shard.write("samples", {
        "step": np.array([0, 1]), "thread": "MainThread", "duration_ns": np.array([10, 20]),
        "count": np.array([1, 2]),
        "stack": ["main (train.py:3)\nstep (train.py:12)", "main (train.py:3)"],
    })  # fmt: skip


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return profile(tmp_path_factory.mktemp("trace") / "run.tltrace")


@pytest.fixture
def reader(trace: Path) -> Iterator[TraceReader]:
    with open_trace(trace) as opened:
        yield opened


@pytest.mark.parametrize("form", ["json", "proto"])
def test_perfetto_drops_nothing_and_knows_every_row(
    form: str, reader: TraceReader, tmp_path: Path
) -> None:
    path = tmp_path / f"run.{form}"
    written = (perfetto if form == "json" else perfetto_proto).export(reader, path)
    assert written == 2 * 2 * N_STEPS * N_OPS
    spans = reader.sql("SELECT count(*) FROM spans")[0][0]
    slices, flows, counters, processes, kernels, steps = trace_processor.judge(
        path,
        "SELECT count(*) FROM slice WHERE name <> 'a note'",
        "SELECT count(*) FROM flow",
        "SELECT t.name, count(*) FROM counter c JOIN counter_track t ON c.track_id = t.id"
        " GROUP BY 1 ORDER BY 1",
        "SELECT name FROM process WHERE name IS NOT NULL ORDER BY name",
        "SELECT count(*), sum(dur) FROM slice WHERE category IN ('kernel', 'memcpy')",
        "SELECT count(*), sum(dur) FROM slice WHERE category = 'step' AND name GLOB 'step *'",
    )
    assert slices == [(written + spans + 2 * N_STEPS,)]
    # To each kernel from its launch, and to each backward op.
    assert flows == [(2 * (N_STEPS * N_OPS + N_STEPS * N_OPS // 2),)]
    # In JSON a counter's name is followed by what it counts.
    assert [(name.removesuffix(" value").removesuffix(" bytes"), n) for name, n in counters] == [
        ("GPU power cuda:0", 16), ("cuda:0 allocated", 16), ("cuda:0 reserved", 16),
    ]  # fmt: skip
    assert [name for (name,) in processes] == [
        "rank 0", "rank 0, device 0", "rank 1", "rank 1, device 0",
    ]  # fmt: skip
    assert kernels == [(2 * N_STEPS * N_OPS, 2 * N_STEPS * N_OPS * (OP_NS + 1))]
    assert steps == [(2 * N_STEPS, 2 * N_STEPS * STEP_NS)]


@pytest.mark.parametrize("form", ["json", "proto"])
def test_a_flow_of_perfetto_joins_the_launch_and_its_kernel(
    form: str, reader: TraceReader, tmp_path: Path
) -> None:
    path = tmp_path / f"run.{form}"
    (perfetto if form == "json" else perfetto_proto).export(reader, path)
    (joined,) = trace_processor.judge(
        path,
        "SELECT a.category, b.category, count(*), min(b.ts - a.ts), max(b.ts - a.ts) FROM flow"
        " JOIN slice a ON a.id = slice_out JOIN slice b ON b.id = slice_in GROUP BY 1, 2"
        " ORDER BY 1, 2",
    )
    assert joined == [
        ("forward", "backward", 2 * N_STEPS * N_OPS // 2, 3 * OP_NS, 3 * OP_NS),
        ("runtime", "kernel", 2 * N_STEPS * 5, 19_990, 19_990),
        ("runtime", "memcpy", 2 * N_STEPS, 19_990, 19_990),
    ]


def test_the_two_forms_of_perfetto_say_the_same(reader: TraceReader, tmp_path: Path) -> None:
    perfetto.export(reader, tmp_path / "a.json")
    perfetto_proto.export(reader, tmp_path / "a.pftrace")
    statement = (
        "SELECT name, category, ts - (SELECT min(ts) FROM slice) AS at, dur, depth, count(*)"
        " FROM slice GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
    )
    assert trace_processor.judge(tmp_path / "a.json", statement) == trace_processor.judge(
        tmp_path / "a.pftrace", statement
    )
    assert (tmp_path / "a.pftrace").stat().st_size < (tmp_path / "a.json").stat().st_size / 2


def test_perfetto_of_some_steps_has_only_their_rows(reader: TraceReader, tmp_path: Path) -> None:
    assert (
        perfetto.export(reader, tmp_path / "a.json", first_step=1, last_step=2) == 2 * 2 * 2 * N_OPS
    )
    events = json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    steps = {e["args"].get("step") for e in events if e["ph"] == "X" and e["cat"] != "step"}
    assert steps == {1, 2}
    trace_processor.judge(tmp_path / "a.json")


def test_a_trace_recorded_op_by_op_loads_too(tmp_path: Path) -> None:
    recorded = training_run(tmp_path / "run.tltrace")
    recorded.close()
    for module, name in ((perfetto, "a.json"), (perfetto_proto, "a.pftrace")):
        with open_trace(recorded.path) as opened:
            assert module.export(opened, tmp_path / name) == 24
        trace_processor.judge(tmp_path / name)


def test_samples_that_have_times_are_ranges_that_nest(tmp_path: Path) -> None:
    stacks = ["main\nload", "main\nload", "main\nstep\nforward", "main\nstep\nbackward", "main"]
    with BulkShard(tmp_path / "s.tltrace") as shard:
        shard.write("samples", {
            # They jitter, and between the last two the thread was idle.
            "t_ns": np.array([0, 1_000_100, 1_999_900, 3_000_000, 9_000_000]),
            "duration_ns": np.full(5, 1_000_000), "count": np.ones(5), "thread": "MainThread",
            "stack": stacks,
        })  # fmt: skip
    for module, name in ((perfetto, "a.json"), (perfetto_proto, "a.pftrace")):
        with open_trace(tmp_path / "s.tltrace") as opened:
            module.export(opened, tmp_path / name)
        (rows,) = trace_processor.judge(
            tmp_path / name,
            "SELECT name, ts - (SELECT min(ts) FROM slice), dur, depth FROM slice"
            " ORDER BY ts, depth",
        )
        assert rows == [
            ("main", 0, 4_000_000, 0),
            ("load", 0, 1_999_900, 1),
            ("step", 1_999_900, 2_000_100, 1),
            ("forward", 1_999_900, 1_000_000, 2),
            ("backward", 3_000_000, 1_000_000, 2),
            ("main", 9_000_000, 1_000_000, 0),
        ]


def test_perfetto_proto_says_which_package_is_missing(
    reader: TraceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    with pytest.raises(TraceLensError, match=r"tracelens-toolkit\[profile\]"):
        perfetto_proto.export(reader, tmp_path / "a.pftrace")
    assert list(tmp_path.iterdir()) == []


def test_perfetto_drops_nothing_of_the_v100_trace_that_it_drops_774_slices_of(
    tmp_path: Path,
) -> None:
    original = next(real("ns_resolution_v100").glob("*.gz"))
    importer_of(original)(original, tmp_path / "v100.tltrace")
    with open_trace(tmp_path / "v100.tltrace") as opened:
        perfetto.export(opened, tmp_path / "v100.json")
        wanted = opened.sql("SELECT count(*), sum(duration_ns) FROM kernels WHERE kind = 'kernel'")
    (kernels,) = trace_processor.judge(
        tmp_path / "v100.json",
        "SELECT count(*), sum(dur) FROM slice WHERE category = 'kernel'",
    )
    assert kernels == wanted == [(4350, 468_153_602)]


# speedscope.


def check_speedscope(document: dict[str, Any]) -> None:
    """Check what speedscope's schema and its importer demand."""
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = document["shared"]["frames"]
    for frame in frames:
        assert isinstance(frame["name"], str)
        assert set(frame) <= {"name", "file", "line", "col"}
    assert 0 <= document["activeProfileIndex"] < len(document["profiles"])
    for each in document["profiles"]:
        assert isinstance(each["name"], str)
        assert each["unit"] in {
            "none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes",
        }  # fmt: skip
        assert each["startValue"] <= each["endValue"]
        if each["type"] == "sampled":
            assert len(each["samples"]) == len(each["weights"])
            assert all(0 <= frame < len(frames) for stack in each["samples"] for frame in stack)
            continue
        assert each["type"] == "evented"
        stack: list[int] = []
        last = each["startValue"]
        for event in each["events"]:
            assert last <= event["at"] <= each["endValue"]
            last = event["at"]
            if event["type"] == "O":
                stack.append(event["frame"])
            else:
                assert event["type"] == "C"
                assert stack.pop() == event["frame"]
        assert stack == []


def test_speedscope_has_threads_streams_and_samples(reader: TraceReader, tmp_path: Path) -> None:
    path = tmp_path / "run.speedscope.json"
    count = speedscope_out.export(reader, path)
    document = json.loads(path.read_text())
    check_speedscope(document)
    names = [each["name"] for each in document["profiles"]]
    assert len(names) == count
    assert "rank 1, device 0, stream 7" in names
    assert "rank 0, MainThread (samples)" in names
    thread = document["profiles"][names.index("rank 0, thread 5")]
    opened = Counter(
        document["shared"]["frames"][e["frame"]]["name"]
        for e in thread["events"]
        if e["type"] == "O"
    )
    assert opened["cudaLaunchKernel"] == N_STEPS * N_OPS
    assert opened["mm"] == N_STEPS * N_OPS / 3
    assert {"name": "mm", "file": "train.py", "line": 12} in document["shared"]["frames"]


def test_what_speedscope_gets_can_be_imported_again(reader: TraceReader, tmp_path: Path) -> None:
    path = tmp_path / "run.speedscope.json"
    speedscope_out.export(reader, path)
    result = importer_of(path)(path, tmp_path / "again.tltrace")
    assert result.problems == ()
    with open_trace(tmp_path / "again.tltrace") as again:
        assert again.sql(
            "SELECT sum(duration_ns) FROM samples WHERE thread LIKE 'rank 0, device 0, stream 7%'"
            " AND stack IN ('gemm', 'copy')"
        ) == reader.sql("SELECT sum(duration_ns) FROM kernels WHERE rank = 0")


# Parquet.


def test_parquet_holds_every_table_of_every_rank(reader: TraceReader, tmp_path: Path) -> None:
    rows = parquet.export(reader, tmp_path / "tables")
    files = {path.stem: pq.read_table(path) for path in (tmp_path / "tables").iterdir()}
    assert set(files) == {
        "ops", "kernels", "spans", "memory", "samples", "counters", "events", "steps",
    }  # fmt: skip
    assert sum(table.num_rows for table in files.values()) == rows
    for name, table in files.items():
        assert table.num_rows == reader.sql(f"SELECT count(*) FROM {name}")[0][0]
        assert table.column("rank").unique().to_pylist() == [0, 1]
    assert files["kernels"].column("duration_ns").to_pylist() == [OP_NS + 1] * 2 * N_STEPS * N_OPS


def test_parquet_of_one_table_rank_and_some_steps(reader: TraceReader, tmp_path: Path) -> None:
    path = tmp_path / "k.parquet"
    assert (
        parquet.export(reader, path, table="kernels", rank=1, first_step=1, last_step=2)
        == 2 * N_OPS
    )
    table = pq.read_table(path)
    assert set(table.column("step").to_pylist()) == {1, 2}
    assert set(table.column("rank").to_pylist()) == {1}
    with pytest.raises(ConfigError, match="no rank 5"):
        parquet.export(reader, tmp_path / "x", rank=5)
    with pytest.raises(ConfigError, match="no table 'nodes'"):
        parquet.export(reader, tmp_path / "x", table="nodes")
    with pytest.raises(ConfigError, match="already exists"):
        parquet.export(reader, path)


# TensorBoard.


def read_by_tensorboard(path: Path) -> Any:
    data = pytest.importorskip("torch_tb_profiler.profiler.data")
    document = json.loads(gzip.decompress(path.read_bytes()))
    return data.RunProfileData.from_json("worker", "span", document)


def costs(run: Any) -> dict[str, float]:
    from torch_tb_profiler.profiler.event_parser import ProfileRole

    return {role.name: run.avg_costs.costs[role] for role in ProfileRole}


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_sees_loading_calls_kernels_and_steps(
    reader: TraceReader, tmp_path: Path
) -> None:
    tensorboard_profile.export(reader, tmp_path / "logs")
    files = sorted(path.name for path in (tmp_path / "logs" / "run").iterdir())
    milliseconds = EPOCH_NS // 10**6
    assert files == [
        f"gpu1_100.{milliseconds}.pt.trace.json.gz", f"gpu1_101.{milliseconds}.pt.trace.json.gz",
    ]  # fmt: skip
    run = read_by_tensorboard(tmp_path / "logs" / "run" / files[0])
    assert run.steps_names == [str(number) for number in range(N_STEPS)]
    spent = costs(run)
    assert spent["DataLoader"] / spent["Total"] == pytest.approx(LOAD_NS / STEP_NS, abs=0.02)
    assert run.has_runtime and run.has_kernel and run.has_memcpy_or_memset
    assert run.kernel_stat["count"].sum() == N_STEPS * 5
    assert len(run.forward_backward_events) == N_STEPS * N_OPS // 2
    assert run.memory_snapshot is not None
    ops = {op.name: op for op in run.op_list_groupby_name}
    assert ops["mm"].calls == N_STEPS * N_OPS / 3
    assert ops["mm"].device_duration > 0
    assert any("data loading" in each for each in run.recommendations)


def test_the_log_folder_is_not_written_over(reader: TraceReader, tmp_path: Path) -> None:
    tensorboard_profile.export(reader, tmp_path / "logs")
    with pytest.raises(ConfigError, match="already exists"):
        tensorboard_profile.export(reader, tmp_path / "logs")
    tensorboard_profile.export(reader, tmp_path / "logs", force=True)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_says_of_the_v100_sample_what_it_says_of_the_original(tmp_path: Path) -> None:
    pytest.importorskip("tracelens.convert.kineto")
    original = next(real("tb_resnet50_nw0").glob("*.pt.trace.json.gz"))
    trace = tmp_path / "v100.tltrace"
    importer_of(original)(original, trace)
    with open_trace(trace) as opened:
        tensorboard_profile.export(opened, tmp_path / "logs")
    (made,) = (tmp_path / "logs" / "v100").iterdir()
    ours, theirs = costs(read_by_tensorboard(made)), costs(read_by_tensorboard(original))
    assert 100 * ours["DataLoader"] / ours["Total"] == pytest.approx(33.37, abs=0.01)
    for role, cost in theirs.items():
        assert ours[role] == pytest.approx(cost, rel=0.002, abs=20), role


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_a_training_whose_modules_are_run_again(tmp_path: Path) -> None:
    original = next(real("mi300_resnet_act_ckpt").glob("*.json.gz"))
    importer_of(original)(original, tmp_path / "r.tltrace")
    with open_trace(tmp_path / "r.tltrace") as opened:
        tensorboard_profile.export(opened, tmp_path / "logs")
        kernels = opened.sql("SELECT count(*) FROM kernels WHERE kind IN ('kernel', 'comm')")
    (made,) = (tmp_path / "logs" / "r").iterdir()
    run = read_by_tensorboard(made)
    assert run.kernel_stat["count"].sum() == kernels[0][0]
    assert run.has_runtime and len(run.steps_names) == 3


RECORD = """
import sys, torch
from torch.utils.data import DataLoader, TensorDataset
from torch.profiler import profile, schedule, ProfilerActivity
data = DataLoader(TensorDataset(torch.randn(64, 32)), batch_size=8)
model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with profile(activities=[ProfilerActivity.CPU],
             schedule=schedule(wait=1, warmup=1, active=4, repeat=1),
             on_trace_ready=lambda recorded: recorded.export_chrome_trace(sys.argv[1]),
             record_shapes=True, profile_memory=True) as recorded:
    for (batch,) in data:
        model(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        recorded.step()
"""


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_sees_the_data_loader_of_a_new_recording(tmp_path: Path) -> None:
    pytest.importorskip("tracelens.convert.kineto")
    pytest.importorskip("torch")
    original = tmp_path / "cpu.json"
    command = [sys.executable, "-c", RECORD, str(original)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    events = json.loads(original.read_text())["traceEvents"]
    steps = [e for e in events if e.get("ph") == "X" and e["name"].startswith("ProfilerStep#")]
    loads = [
        e for e in events if e.get("ph") == "X" and e["name"].startswith("enumerate(DataLoader)")
    ]
    loaded_us = sum(
        load["dur"]
        for load in loads
        for step in steps
        if step["ts"] <= load["ts"] < step["ts"] + step["dur"]
    )
    importer_of(original)(original, tmp_path / "cpu.tltrace")
    with open_trace(tmp_path / "cpu.tltrace") as opened:
        tensorboard_profile.export(opened, tmp_path / "logs")
    (made,) = (tmp_path / "logs" / "cpu").iterdir()
    run = read_by_tensorboard(made)
    assert len(run.steps_names) == len(steps) == 4
    assert costs(run)["DataLoader"] * len(steps) == pytest.approx(loaded_us, rel=0.05)
    assert len(run.forward_backward_events) > 0
    ops = {op.name for op in run.op_list_groupby_name}
    assert {"aten::addmm", "aten::relu"} <= ops


# The command.


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("parquet", "run-tables"),
        ("perfetto-proto", "run.pftrace"),
        ("speedscope", "run.speedscope.json"),
        ("tensorboard-profile", "logs"),
    ],
)
def test_the_command_names_what_it_writes_after_the_trace(
    form: str, name: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trace), "--format", form, "--steps", "0:2"]) == 0
    assert capsys.readouterr().out == f"{name}\n"
    assert (tmp_path / name).exists()
    shutil.rmtree(tmp_path / name, ignore_errors=True)
