"""Step splits and idle reasons, against answers worked out by hand or on a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profile_builder import ProfileBuilder

from tracelens.analysis.profile.device import device_totals
from tracelens.analysis.profile.idle import idle, stream_idle
from tracelens.analysis.profile.steps import PARTS, split_steps


def one_step(build: ProfileBuilder) -> None:
    """100 ns of data, a forward and a backward op, an exposed collective, a copy, a wait."""
    build.step(4, 0, 1000)
    build.span(
        "data", "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 0, 100, step=4
    )
    mm = build.op("aten::mm", 150, 250, step=4)
    build.launched("gemm", (160, 180), (200, 400), step=4, op_id=mm)
    backward = build.op("MmBackward0", 300, 420, step=4, phase="backward")
    build.launched("gemm", (310, 330), (400, 600), step=4, op_id=backward)
    build.launched("ncclKernel_AllReduce", (340, 350), (550, 700), step=4, kind="comm", stream=9)
    build.launched("Memcpy HtoD", (360, 370), (690, 750), step=4, kind="memcpy", stream=11)
    build.span("annotation", "Optimizer.step#SGD.step", 800, 900, step=4)


def test_the_parts_of_a_step_add_up_to_it(build: ProfileBuilder, path: Path) -> None:
    one_step(build)
    whole = split_steps(build.load(path)).whole
    by_name = {part.name: part.duration_ns for part in whole.parts}
    assert by_name == {
        "data": 100,
        "forward": 200 + 30,  # the kernel, and the op before it without its launch
        "backward": 200,
        "optimizer": 100,
        "communication": 100,  # 600 to 700: what the kernel does not hide
        "copies": 50,  # 700 to 750
        "runtime": 20,  # 160 to 180
        "other": 0,
        "idle": 50 + 50 + 100,
    }
    assert sum(by_name.values()) == whole.duration_ns == 1000
    assert whole.busy_ns == 550
    comm = whole.part("communication")
    assert (comm.total_ns, comm.hidden_ns, comm.device_ns) == (150, 50, 100)
    assert whole.part("forward").host_ns == 30


def test_a_kernel_counts_in_the_step_in_which_it_runs(build: ProfileBuilder, path: Path) -> None:
    build.step(0, 0, 100)
    build.step(1, 100, 200)
    op = build.op("aten::mm", 10, 50, step=0)
    build.launched("gemm", (20, 30), (80, 150), step=0, op_id=op)
    data = build.load(path)
    assert [step.busy_ns for step in split_steps(data).steps] == [20, 50]
    aligned = split_steps(data, windows="device")
    assert [step.duration_ns for step in aligned.steps] == [150, 50]
    assert [step.busy_ns for step in aligned.steps] == [70, 0]


def test_selected_steps_alone_are_split(build: ProfileBuilder, path: Path) -> None:
    for step in range(4):
        build.step(step, step * 100, step * 100 + 100)
        build.op("aten::mm", step * 100, step * 100 + 10 * step, step=step)
    answer = split_steps(build.load(path, steps=(1, 3)))
    assert [(s.step, s.part("forward").duration_ns) for s in answer.steps] == [(1, 10), (2, 20)]


def test_a_trace_without_steps_is_one(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::mm", 100, 150)
    build.op("aten::mm", 180, 200)
    answer = split_steps(build.load(path))
    assert not answer.marked and not answer.has_device
    assert answer.whole.duration_ns == 100
    assert answer.whole.part("forward").duration_ns == 70
    assert answer.whole.part("idle").duration_ns == 30


def test_ops_recomputed_in_the_backward_pass_are_backward(
    build: ProfileBuilder, path: Path
) -> None:
    outer = build.op("CheckpointFunctionBackward", 0, 100, phase="backward")
    build.op("aten::mm", 20, 60, phase="forward", parent_id=outer)
    assert split_steps(build.load(path)).whole.part("backward").duration_ns == 100


def test_an_empty_trace_has_nothing_to_split(build: ProfileBuilder, path: Path) -> None:
    data = build.load(path)
    answer = split_steps(data)
    assert answer.whole.duration_ns == 0
    assert idle(data) is None
    assert device_totals(data) == []


def test_idle_time_is_what_the_device_waited_for(build: ProfileBuilder, path: Path) -> None:
    one_step(build)
    answer = idle(build.load(path))
    assert answer is not None
    assert (answer.busy_ns, answer.idle_ns) == (550, 450)
    assert answer.reasons == {
        "data": 100,
        "sync": 0,
        "runtime": 0,
        "ops": 10,  # 150 to 160, where the launch begins
        "other_host": 50 + 250,  # before the op, and after the last work
        "kernel_wait": 40,  # 160 to 200: launched, not there yet
        "unknown": 0,
    }


def test_a_gap_before_work_of_unknown_launch_is_unknown(build: ProfileBuilder, path: Path) -> None:
    build.kernel("a", 0, 10)
    build.kernel("b", 30, 40)
    answer = idle(build.load(path))
    assert answer is not None
    assert answer.reasons["unknown"] == 20
    assert answer.idle_ns == 20


def test_stream_gaps_are_sorted_as_hta_sorts_them(build: ProfileBuilder, path: Path) -> None:
    us = 1000
    build.launched("a", (0, 5), (10, 100 * us))
    build.launched("b", (50, 55), (120 * us, 200 * us))  # queued, the gap of 20 µs is below 30
    build.launched("c", (250 * us, 255 * us), (300 * us, 400 * us))  # launched after b had ended
    build.launched("d", (260 * us, 265 * us), (500 * us, 600 * us))  # queued, and yet 100 µs later
    (stream,) = stream_idle(build.load(path))
    assert stream.host_wait_ns == 100 * us
    assert stream.kernel_wait_ns == 20 * us
    assert stream.other_ns == 100 * us


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["kernel", "comm", "memcpy"]),
            st.integers(0, 50),
            st.integers(1, 30),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_device_totals_agree_with_a_grid(
    tmp_path_factory: pytest.TempPathFactory, work: list[tuple[str, int, int, int]]
) -> None:
    build = ProfileBuilder()
    lines = {kind: np.zeros(100, dtype=bool) for kind in ("kernel", "comm", "memcpy")}
    for kind, start, length, stream in work:
        build.kernel("k", start, start + length, kind=kind, stream=stream)
        lines[kind][start : start + length] = True
    totals = device_totals(build.load(tmp_path_factory.mktemp("t") / "run.tltrace"))[0]
    busy = lines["kernel"] | lines["comm"] | lines["memcpy"]
    ends = np.flatnonzero(busy)
    assert totals.busy_ns == busy.sum()
    assert totals.span_ns == ends[-1] - ends[0] + 1
    assert totals.compute_ns == lines["kernel"].sum()
    assert totals.exposed_comm_ns == (lines["comm"] & ~lines["kernel"]).sum()
    assert totals.exposed_copies_ns == (lines["memcpy"] & ~lines["kernel"] & ~lines["comm"]).sum()


def test_each_device_has_totals_of_its_own(build: ProfileBuilder, path: Path) -> None:
    build.kernel("a", 0, 10, device=0)
    build.kernel("b", 5, 20, device=1)
    whole, first, second = device_totals(build.load(path))
    assert (whole.device, whole.busy_ns, whole.streams) == (None, 20, 2)
    assert (first.device, first.busy_ns) == (0, 10)
    assert (second.device, second.busy_ns, second.idle_ns) == (1, 15, 0)


def test_every_part_has_a_name(build: ProfileBuilder, path: Path) -> None:
    one_step(build)
    assert tuple(part.name for part in split_steps(build.load(path)).whole.parts) == PARTS


def test_the_last_attempt_of_a_rank_is_analysed_alone(path: Path) -> None:
    for attempt, length in enumerate((40, 70)):
        build = ProfileBuilder(attempt=attempt)
        build.step(attempt, 1000 * attempt, 1000 * attempt + 100)
        build.op("aten::mm", 1000 * attempt, 1000 * attempt + length, step=attempt)
        data = build.load(path)
    (step,) = split_steps(data).steps
    assert (step.step, step.part("forward").duration_ns) == (1, 70)
