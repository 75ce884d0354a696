"""XPlane profiles of TensorFlow and JAX as traces: kernels, ops, steps, hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from profile_files import XPlane, environment, real, xspace
from tracelens.cli import main
from tracelens.convert import xplane, xplane_lines
from tracelens.convert.importers import importer_of
from tracelens.errors import TraceError
from tracelens.storage.reader import TraceReader, open_trace
from tracelens.storage.verify import verify

START_NS = 1_700_000_000_000_000_000


def imported(path: Path, tmp_path: Path) -> TraceReader:
    out = tmp_path / "out.tltrace"
    importer_of(path)(path, out)
    assert verify(out) == []
    return open_trace(out)


def gpu_profile(shift_ns: int = 0) -> bytes:
    """Two steps on a GPU: in each a batch is loaded, a MatMul launches a kernel, data is copied."""
    host, gpu = XPlane("/host:CPU"), XPlane("/device:GPU:1")
    events: list[tuple[Any, ...]] = []
    kernels: list[tuple[Any, ...]] = []
    copies: list[tuple[Any, ...]] = []
    for step in range(2):
        at = 1000 + 1000 * step + shift_ns
        corr = 10 + step
        events += [
            ("train", at, 900, {"step_num": step, "_r": 1}),
            ("IteratorGetNextOp::DoCompute", at + 10, 100, {}),
            ("Iterator::Root", at + 20, 80, {}),
            (("model/dense/MatMul:MatMul", "MatMul"), at + 200, 100, {}),
            ("cuLaunchKernel", at + 220, 20, {"correlation_id": corr}),
            (("gradient_tape/model/dense/MatMul:MatMul", "MatMul"), at + 400, 100, {}),
            (("SGD/ResourceApplyGradientDescent:ResourceApplyGradientDescent",
              "ResourceApplyGradientDescent"), at + 600, 50, {}),
        ]  # fmt: skip
        kernels += [
            ("sgemm_128", at + 950, 300,
             {"correlation_id": corr,
              "kernel_details": "regs:32 grid:8,1,1 block:128,1,1 occ_pct:50",
              "tf_op": "model/dense/MatMul:MatMul"}),
            ("ncclKernel_AllReduce", at + 1300, 50,
             {"tf_op": "gradient_tape/model/dense/MatMul:MatMul"}),
        ]  # fmt: skip
        copies.append(("MemcpyH2D", at + 500, 40, {"memcpy_details": "size:4096 async:1"}))
    host.line(77, "python", events)
    gpu.line(1, "Stream #13(Compute)", kernels)
    gpu.line(2, "Stream #14(MemcpyH2D)", copies)
    gpu.line(3, "XLA Modules", [("cluster", 1000, 400, {})])
    gpu.line(4, "TensorFlow Ops", [("model/dense/MatMul", 1000, 400, {})])
    return xspace(gpu, host, environment(START_NS))


@pytest.mark.parametrize("long_events", [1 << 16, 2])
def test_kernels_find_their_launch_their_op_and_their_step(
    long_events: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A long line is read another way, which holds less of it.
    monkeypatch.setattr(xplane_lines, "_LONG_EVENTS", long_events)
    (tmp_path / "h.xplane.pb").write_bytes(gpu_profile())
    with imported(tmp_path / "h.xplane.pb", tmp_path) as trace:
        rows = trace.sql(
            "SELECT k.kind, k.name, k.device, k.stream, k.step, k.size_bytes, k.grid, k.occupancy,"
            " o.module, s.name FROM kernels k LEFT JOIN ops o USING (op_id)"
            " LEFT JOIN spans s USING (span_id) ORDER BY k.start_ns"
        )
        assert [row[:3] + row[4:5] for row in rows] == [
            ("memcpy", "MemcpyH2D", 1, 0),
            ("kernel", "sgemm_128", 1, 0),
            ("comm", "ncclKernel_AllReduce", 1, 1),
            ("memcpy", "MemcpyH2D", 1, 1),
            ("kernel", "sgemm_128", 1, 1),
            ("comm", "ncclKernel_AllReduce", 1, -1),
        ]
        assert rows[0][5] == 4096
        assert rows[1][6:] == ("8,1,1", 50.0, "model/dense/MatMul", "cuLaunchKernel")
        assert rows[2][8] == "gradient_tape/model/dense/MatMul"
        assert trace.sql("SELECT phase, count(*) FROM ops GROUP BY 1 ORDER BY 1") == [
            ("backward", 2), ("forward", 2), ("optimizer", 2),
        ]  # fmt: skip
        assert [(each["step"], each["duration_ns"]) for each in trace.steps()] == [
            (0, 900),
            (1, 900),
        ]
        # The wait for a batch counts once, though two ranges tell it.
        assert trace.sql("SELECT count(*), sum(duration_ns) FROM spans WHERE kind = 'data'") == [
            (2, 200)
        ]
        assert trace.sql("SELECT name FROM spans WHERE kind = 'device_annotation'") == [
            ("cluster",)
        ]
        assert trace.manifest.epoch_unix_ns == START_NS


def test_steps_are_those_of_the_host_and_a_number_counts_once(tmp_path: Path) -> None:
    host, device = XPlane("/host:CPU"), XPlane("/device:TPU:0")
    # Keras marks a batch without saying that it is a root.
    marks = [("Profiled batch", 1000 * n, 900, {"step_num": n % 3}) for n in range(4)]
    device.line(1, "Steps", [("7", 0, 5000, {})])
    device.line(2, "XLA Ops", [("fusion", 100, 50, {})])
    (tmp_path / "a.xplane.pb").write_bytes(xspace(host.line(1, "python", marks), device))
    result = xplane.convert(tmp_path / "a.xplane.pb", tmp_path / "a")
    assert result.problems == ("1 marks repeat the number of a step, and are kept as ranges only",)
    with open_trace(tmp_path / "a") as trace:
        assert [each["step"] for each in trace.steps()] == [0, 1, 2]
    (tmp_path / "b.xplane.pb").write_bytes(xspace(device))
    xplane.convert(tmp_path / "b.xplane.pb", tmp_path / "b")
    with open_trace(tmp_path / "b") as trace:
        assert [each["step"] for each in trace.steps()] == [7]


def test_each_host_of_a_run_is_a_rank_and_the_same_file_twice_is_told(tmp_path: Path) -> None:
    run = tmp_path / "logs" / "plugins" / "profile" / "2024_01_02"
    run.mkdir(parents=True)
    (run / "a.xplane.pb").write_bytes(gpu_profile())
    (run / "b.xplane.pb").write_bytes(gpu_profile(5))
    (run / "c.xplane.pb").write_bytes(gpu_profile())
    older = run.with_name("2024_01_01")
    older.mkdir()
    (older / "a.xplane.pb").write_bytes(gpu_profile())
    out = tmp_path / "out.tltrace"
    result = xplane.convert(tmp_path / "logs", out)
    assert any("c.xplane.pb is byte for byte a.xplane.pb" in each for each in result.problems)
    assert any("2 runs, of which the last (2024_01_02)" in each for each in result.problems)
    with open_trace(out) as trace:
        assert trace.ranks() == [0, 1]
        assert [shard.host for shard in trace.shards()] == ["a", "b"]
        assert trace.sql("SELECT rank, count(*) FROM kernels GROUP BY 1 ORDER BY 1") == [
            (0, 6),
            (1, 6),
        ]


def test_a_profile_that_is_cut_off_keeps_the_planes_before_the_cut(tmp_path: Path) -> None:
    whole = gpu_profile()
    (tmp_path / "h.xplane.pb").write_bytes(whole[:-40])
    result = xplane.convert(tmp_path / "h.xplane.pb", tmp_path / "out.tltrace")
    assert result.kernels == 6
    assert any("damaged and left out" in each for each in result.problems)


def test_a_profile_saved_as_text_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "h.xplane.pb"
    path.write_bytes(bytes(range(128, 256)).decode("utf-8", "replace").encode() * 40)
    assert main(["import", str(path), "-o", str(tmp_path / "t")]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "saved as UTF-8 text" in error
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("data", [b"", b"\x0a", b"not a profile", bytes(range(255))])
def test_what_is_no_profile_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "h.xplane.pb"
    path.write_bytes(data)
    with pytest.raises(TraceError):
        xplane.convert(path, tmp_path / "out.tltrace")


def test_the_corrupt_profile_of_xprof_is_refused(tmp_path: Path) -> None:
    path = real("corrupt_xplane", "tpu_inference_2.xplane.pb")
    with pytest.raises(TraceError, match="saved as UTF-8 text"):
        xplane.convert(path, tmp_path / "out.tltrace")


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("jax_xplane_mi300", "tw003.xplane.pb"),
        ("jax_xplane_te_attn", "934987a2fc2f.xplane.pb"),
        ("tpu_xplane", "tpu_inference_2.xplane.pb"),
    ],
)
def test_device_work_is_what_a_plain_parse_finds(folder: str, file: str, tmp_path: Path) -> None:
    path = real(folder, file)
    xplane_pb2 = pytest.importorskip("tensorflow.tsl.profiler.protobuf.xplane_pb2")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    counts: Counter[int] = Counter()
    total_ps = 0
    for plane in space.planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream #") or line.name in ("XLA Ops", "Async XLA Ops"):
                counts[int(plane.name.rpartition(":")[2])] += len(line.events)
                total_ps += sum(event.duration_ps for event in line.events)
    with imported(path, tmp_path) as trace:
        rows = trace.sql("SELECT device, count(*), sum(duration_ns) FROM kernels GROUP BY 1")
    assert {device: count for device, count, _ in rows} == dict(counts)
    total_ns = sum(duration for _, _, duration in rows)
    # Ends are rounded to whole nanoseconds.
    assert abs(total_ns - total_ps / 1000) <= sum(counts.values())


def test_kernels_of_jax_belong_to_the_instruction_that_launched_them(tmp_path: Path) -> None:
    path = real("jax_xplane_te_attn", "934987a2fc2f.xplane.pb")
    with imported(path, tmp_path) as trace:
        assert trace.sql(
            "SELECT count(*), count(op_id), count(span_id), sum(duration_ns) FROM kernels"
        ) == [(150, 150, 150, 12_133_585)]
        assert trace.sql(
            "SELECT count(*) FROM kernels k JOIN ops o USING (op_id)"
            " WHERE json_extract_string(k.args, '$.hlo_op') <> o.name"
        ) == [(0,)]
        assert trace.sql("SELECT DISTINCT phase FROM ops ORDER BY 1") == [
            ("backward",),
            ("forward",),
        ]


def test_the_live_reader_sees_kernels_too() -> None:
    profile = xplane.read(gpu_profile())
    assert [op.op_type for op in profile.ops[:2]] == ["MatMul", "MatMul"]
    assert Counter(kernel.kind for kernel in profile.kernels) == {
        "kernel": 2, "comm": 2, "memcpy": 2,
    }  # fmt: skip
    kernel = profile.kernels[0]
    assert (kernel.device, kernel.stream, kernel.corr_id, kernel.grid) == (1, 13, 10, "8,1,1")
    assert kernel.start_unix_ns == START_NS + 1950


RECORD = """
import sys, tensorflow as tf
data = tf.data.Dataset.range(64).batch(8).prefetch(2)
weights = tf.Variable(tf.ones((8, 4)))
@tf.function
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.relu(tf.cast(x, tf.float32)[None] @ weights))
    weights.assign_sub(0.01 * tape.gradient(loss, weights))
    return loss
batches = iter(data)
step(next(batches))
tf.profiler.experimental.start(sys.argv[1])
for number in range(3):
    with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
        step(next(batches))
tf.profiler.experimental.stop()
"""


def test_a_profile_recorded_by_tensorflow_has_its_steps_and_phases(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    command = [sys.executable, "-c", RECORD, str(tmp_path / "log")]
    environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    subprocess.run(command, check=True, env=environ, capture_output=True, timeout=120)
    shutil.rmtree(tmp_path / "out.tltrace", ignore_errors=True)
    with imported(tmp_path / "log", tmp_path) as trace:
        assert [each["step"] for each in trace.steps()] == [0, 1, 2]
        rows = dict(trace.sql("SELECT phase, count(DISTINCT step) FROM ops GROUP BY 1"))
        assert rows["backward"] == rows["forward"] == rows["optimizer"] == 3
        assert trace.sql(
            "SELECT count(*) FROM spans WHERE kind = 'data' AND step BETWEEN 0 AND 2"
        ) == [(3,)]
        assert trace.sql("SELECT count(*) FROM ops WHERE name LIKE '%MatMul%'")[0][0] >= 6
