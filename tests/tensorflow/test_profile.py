"""``profile=True``: every op's time and thread from TensorFlow's profiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.profiler import profiler_v2

import tracelens as tl
from tracelens.analysis.profile.data import load_profile
from tracelens.analysis.profile.kernels import top_ops
from tracelens.convert import xplane, xplane_profile
from tracelens.events import Op, OpFlag
from tracelens.overview import overview
from tracelens.storage.reader import open_trace
from tracelens_tensorflow import profile

XPLANES = Path(__file__).parents[2].parent / "shared" / "data" / "profiles"
BATCH = np.ones((64, 32), np.float32)


def make_step() -> Any:
    weights = tf.Variable(np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(32, 32))

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.relu(x @ weights))
        weights.assign_sub(0.1 * tape.gradient(loss, weights))
        return loss

    return step


def profiled(path: Path) -> list[Op]:
    with open_trace(path) as trace:
        return [op for op in trace.ops() if op.flags & OpFlag.PROFILED]


def test_every_op_has_its_time_within_its_step(tmp_path: Path) -> None:
    step = make_step()
    with tl.trace(tmp_path / "t", profile=True, quiet=True) as session:
        for _ in range(4):
            step(tf.constant(BATCH))
            session.step()
    ops = profiled(tmp_path / "t")
    with open_trace(tmp_path / "t") as trace:
        steps = {each["step"]: each for each in trace.steps()}
    assert {op.step for op in ops if "MatMul" in op.name} == {0, 1, 2, 3}
    assert all(op.duration_ns is not None and op.duration_ns >= 0 for op in ops)
    n_threads = len({op.tid for op in ops})
    for number in range(4):
        mine = [op for op in ops if op.step == number]
        wall_ns = steps[number]["duration_ns"]
        spent_ns = sum(op.duration_ns or 0 for op in mine)
        assert 0 < spent_ns <= 2 * wall_ns * n_threads
        begin_ns = steps[number]["start_ns"]
        # Clocks: the profiler's is Unix time, the trace's is monotonic.
        slack_ns = 50_000_000
        assert all(
            begin_ns - slack_ns <= op.start_ns <= begin_ns + wall_ns + slack_ns for op in mine
        )


def test_backward_and_update_ops_are_told_apart(tmp_path: Path) -> None:
    step = make_step()
    with tl.trace(tmp_path / "t", profile=True, quiet=True):
        step(tf.constant(BATCH))
    phases = {op.module: op.phase.label for op in profiled(tmp_path / "t")}
    assert phases["AssignSubVariableOp"] == "optimizer"
    assert any(label == "backward" for label in phases.values())


def test_only_the_steps_of_the_schedule_are_profiled(tmp_path: Path) -> None:
    step = make_step()
    schedule = tl.schedule(wait=2, warmup=0, active=2, repeat=1)
    with tl.trace(tmp_path / "t", profile=True, schedule=schedule, quiet=True) as session:
        for _ in range(6):
            step(tf.constant(BATCH))
            session.step()
    assert {op.step for op in profiled(tmp_path / "t") if "MatMul" in op.name} == {2, 3}


def test_results_are_those_of_the_plain_program(tmp_path: Path) -> None:
    plain = make_step()
    expected = [float(plain(tf.constant(BATCH))) for _ in range(5)]
    with tl.trace(tmp_path / "t", profile=True, quiet=True):
        watched = make_step()
        assert [float(watched(tf.constant(BATCH))) for _ in range(5)] == expected


def test_ops_that_are_recorded_and_profiled_count_once_in_the_summary(tmp_path: Path) -> None:
    step = make_step()
    with tl.trace(tmp_path / "t", capture="ops", profile=True, quiet=True) as session:
        for _ in range(3):
            step(tf.constant(BATCH))
            session.step()
    with open_trace(tmp_path / "t") as reader:
        found = overview(reader)
        ranked = top_ops(load_profile(reader))
    products = next(op for op in ranked if op.name.endswith("MatMul"))
    counted = {row["name"]: row["count"] for row in found["time"]["op"]}
    assert counted[products.name] == products.count
    assert 0 < found["ops"]["profiled"] < found["ops"]["recorded"]


def test_a_profiler_of_the_program_goes_first(tmp_path: Path) -> None:
    before = profiler_v2.start
    step = make_step()
    with tl.trace(tmp_path / "t", profile=True, quiet=True) as session:
        step(tf.constant(BATCH))
        session.step()
        tf.profiler.experimental.start(str(tmp_path / "theirs"))
        step(tf.constant(BATCH))
        session.step()
        tf.profiler.experimental.stop()
        step(tf.constant(BATCH))
        session.step()
    (theirs,) = (tmp_path / "theirs").rglob("*.xplane.pb")
    assert any("MatMul" in op.op_type for op in xplane.read(theirs.read_bytes()).ops)
    assert 0 in {op.step for op in profiled(tmp_path / "t")}
    with open_trace(tmp_path / "t") as reader:
        assert load_profile(reader).steps.step.tolist() == [0], "the others are not idle"
    assert profiler_v2.start is before
    with pytest.raises(tf.errors.UnavailableError):
        tf.profiler.experimental.stop()


def test_run_profile_needs_no_change_of_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import tensorflow as tf\n"
        "@tf.function\n"
        "def f(x):\n    return tf.reduce_sum(x @ x)\n"
        "print(float(f(tf.ones([8, 8]))))\n"
    )
    command = [
        sys.executable,
        "-m",
        "tracelens",
        "run",
        "--profile",
        "-q",
        "-o",
        str(tmp_path / "t"),
    ]
    done = subprocess.run(
        [*command, str(program)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert done.returncode == 0 and done.stdout == "512.0\n", done.stderr
    assert any(op.name.endswith("MatMul") for op in profiled(tmp_path / "t"))


def test_spans_and_parents_belong_to_rows_of_the_trace(tmp_path: Path) -> None:
    step = make_step()
    data = tf.data.Dataset.from_tensor_slices(np.ones((256, 32), np.float32)).batch(64).repeat()
    batches = iter(data)
    schedule = tl.schedule(active=2, wait=1)
    with tl.trace(tmp_path / "t", profile=True, schedule=schedule, quiet=True) as session:
        for _ in range(6):
            step(next(batches))
            session.step()
    with open_trace(tmp_path / "t") as trace:
        (same,) = trace.sql("SELECT count(*) = count(DISTINCT span_id) FROM spans")
        (ids,) = trace.sql("SELECT count(*) = count(DISTINCT op_id) FROM ops")
        (lost,) = trace.sql(
            "SELECT count(*) FROM spans s WHERE s.parent_id IS NOT NULL AND s.parent_id NOT IN "
            "(SELECT span_id FROM spans)"
        )
        (named,) = trace.sql(
            "SELECT count(*) FROM spans s JOIN ops o ON o.op_id = s.op_id "
            "WHERE s.start_ns < o.start_ns OR s.tid != o.tid"
        )
        kinds = {kind for (kind,) in trace.sql("SELECT DISTINCT kind FROM spans")}
        steps = {step for (step,) in trace.sql("SELECT DISTINCT step FROM spans WHERE step >= 0")}
    assert (same, ids, lost, named) == ((True,), (True,), (0,), (0,))
    assert "data" in kinds
    assert steps == {1, 2, 4, 5}


def test_kernels_of_a_device_are_kept_with_ids_of_the_recording(tmp_path: Path) -> None:
    found = sorted(XPLANES.glob("jax_xplane_*/*.xplane.pb")) if XPLANES.exists() else []
    if not found:
        pytest.skip("real traces are not here")
    smallest = min(found, key=lambda path: path.stat().st_size).read_bytes()
    with tl.trace(tmp_path / "t", profile=True, quiet=True) as session:
        session.step()
        assert profile._active is not None
        for _ in range(2):
            profile._active._write(smallest)
    expected = xplane_profile.read(smallest)
    with open_trace(tmp_path / "t") as trace:
        kernels = trace.sql("SELECT count(*), count(DISTINCT kern_id) FROM kernels")
        spans = trace.sql("SELECT count(*) = count(DISTINCT span_id) FROM spans")
    assert kernels[0][0] == kernels[0][1] > 0
    assert kernels[0][0] <= 2 * len(expected.kernels)
    assert spans == [(True,)]
