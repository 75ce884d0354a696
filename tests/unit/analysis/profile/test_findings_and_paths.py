"""Findings with their gains, the critical path, retraces, the overview."""

from __future__ import annotations

import json
from pathlib import Path

from profile_builder import ProfileBuilder

from tracelens.analysis.profile.critical import critical_path
from tracelens.analysis.profile.devices import limits_of
from tracelens.analysis.profile.findings import profile_findings
from tracelens.analysis.profile.overview import profile_overview
from tracelens.analysis.profile.retrace import retraces


def loading(build: ProfileBuilder, steps: int = 3) -> None:
    """Each step waits 400 of 1000 for data, launches one kernel and reads its result."""
    for step in range(steps):
        at = step * 1000
        build.step(step, at, at + 1000)
        build.span("data", "DataLoader", at, at + 400, step=step)
        op = build.op("aten::mm", at + 400, at + 450, step=step, file="train.py", line=3)
        build.launched("gemm", (at + 410, at + 420), (at + 450, at + 900), op_id=op, step=step)
        item = build.op("aten::item", at + 460, at + 960, step=step, file="train.py", line=5)
        build.span("runtime", "cudaStreamSynchronize", at + 470, at + 950, op_id=item, step=step)


def test_a_loader_that_is_waited_for_is_a_finding_with_its_gain(
    build: ProfileBuilder, path: Path
) -> None:
    loading(build)
    finding, smaller = profile_findings(build.load(path))
    assert (finding["rule"], smaller["rule"]) == ("data_loading", "sync_stall")
    assert (finding["severity"], finding["verdict"], finding["rank"]) == (
        "warning",
        "structural",
        0,
    )
    assert (finding["gain_ns"], finding["gain_share"]) == (1200, 0.4)
    assert "40.0 %" in finding["message"] and "num_workers" in finding["advice"]


def test_a_busy_device_and_an_empty_trace_have_no_finding(
    build: ProfileBuilder, path: Path
) -> None:
    assert profile_findings(ProfileBuilder().load(path.with_name("empty.tltrace"))) == []
    build.step(0, 0, 1000)
    op = build.op("aten::mm", 0, 10, step=0)
    build.launched("gemm", (1, 5), (10, 1000), op_id=op, step=0)
    assert profile_findings(build.load(path)) == []


def test_a_host_that_launches_too_slowly_is_a_finding(build: ProfileBuilder, path: Path) -> None:
    build.step(0, 0, 10_000)
    for at in range(0, 10_000, 100):
        op = build.op("aten::add", at, at + 90, step=0)
        build.launched("add", (at + 70, at + 80), (at + 85, at + 95), op_id=op, step=0)
    found = profile_findings(build.load(path))
    rules = {finding["rule"]: finding for finding in found}
    assert set(rules) == {"launch_bound", "short_kernels"}
    assert rules["launch_bound"]["evidence"]["mostly"] == "ops"
    assert 0.7 < rules["launch_bound"]["gain_share"] < 0.9
    assert found[0]["rule"] == "launch_bound", "the greatest gain comes first"


def test_waits_that_drain_the_device_are_a_finding(build: ProfileBuilder, path: Path) -> None:
    build.step(0, 0, 1000)
    for at in (0, 500):
        item = build.op("aten::item", at, at + 200, step=0, file="train.py", line=8)
        build.span("runtime", "cudaStreamSynchronize", at + 10, at + 190, op_id=item, step=0)
        build.launched("gemm", (at + 1, at + 5), (at + 20, at + 180), step=0)
    (finding,) = [f for f in profile_findings(build.load(path)) if f["rule"] == "sync_stall"]
    assert "aten::item at train.py:8" in finding["message"]
    assert finding["gain_ns"] == 520 - 190


def test_growing_and_fragmented_memory_are_findings(build: ProfileBuilder, path: Path) -> None:
    for step in range(4):
        build.step(step, step * 100, step * 100 + 100)
        kept = (step + 1) << 24
        build.memory(
            step * 100 + 5, 1 << 24, address=step, allocated_bytes=kept, reserved_bytes=3 * kept
        )
    rules = {finding["rule"] for finding in profile_findings(build.load(path))}
    assert rules == {"memory_growth", "fragmentation"}


def test_a_step_that_takes_much_longer_is_a_finding(build: ProfileBuilder, path: Path) -> None:
    at = 0
    for step, length in enumerate([100, 100, 100, 700, 100, 100]):
        build.step(step, at, at + length)
        build.op("aten::mm", at, at + length, step=step)
        at += length
    (finding,) = profile_findings(build.load(path))
    assert (finding["rule"], finding["step"], finding["gain_ns"]) == ("slow_steps", 3, 600)


def test_retraces_cost_their_compile_time_or_the_longer_step(
    build: ProfileBuilder, path: Path
) -> None:
    at = 0
    for step, length in enumerate([900, 100, 400, 100, 100]):
        build.step(step, at, at + length)
        if step in (0, 2):
            name = "_compile.compile_inner (dynamo_timed)"
            build.op(name, at, at + 200, step=step, phase="other")
            build.event("finding", {"rule": "retrace", "step": step, "message": "shape changed"})
        at += length
    answer = retraces(build.load(path))
    assert answer is not None
    assert [(s.step, s.compile_ns, s.excess_ns, s.retraces) for s in answer.steps] == [
        (0, 200, 800, 1),
        (2, 200, 300, 1),
    ]
    assert (answer.retraces, answer.compile_ns, answer.cost_ns) == (2, 400, 1100)
    assert answer.steps[1].causes == ("shape changed",)
    told = ProfileBuilder()
    told.step(7, 0, 1000)
    told.event("finding", {"rule": "retrace", "step": 7, "message": "x", "duration_ns": 300})
    answer = retraces(told.load(path.with_name("told.tltrace")))
    assert answer is not None and (answer.compile_ns, answer.cost_ns) == (300, 300)
    rules = {f["rule"]: f for f in profile_findings(build.load(path.with_name("again.tltrace")))}
    assert rules["recompile"]["step"] == 2, "the first step always compiles"


def test_the_critical_path_alternates_between_host_and_device(
    build: ProfileBuilder, path: Path
) -> None:
    loading(build, steps=2)
    answer = critical_path(build.load(path))
    assert answer is not None
    assert answer.duration_ns == 2000
    assert answer.device_ns == 2 * 450
    assert answer.delay_ns == 2 * (40 + 50)  # launch to start, and the end of the wait
    assert answer.host_ns == 2000 - 900 - 180
    assert answer.host[0].name == "data" and answer.host[0].duration_ns == 800
    assert [part.name for part in answer.kernels] == ["gemm"]
    assert "aten::mm" in [part.name for part in answer.ops]
    starts, ends = (answer.segments[name].tolist() for name in ("start_ns", "end_ns"))
    assert starts[0] == 0 and ends[-1] == 2000
    assert starts[1:] == ends[:-1], "the pieces follow one another without a hole"


def test_queued_kernels_form_the_path_by_themselves(build: ProfileBuilder, path: Path) -> None:
    build.launched("a", (0, 5), (10, 100))
    build.launched("b", (5, 10), (100, 200))
    build.launched("c", (10, 15), (205, 300))
    build.launched("aside", (15, 20), (50, 60), stream=9)
    answer = critical_path(build.load(path))
    assert answer is not None
    assert [(p.name, p.duration_ns) for p in answer.kernels] == [("b", 100), ("c", 95), ("a", 90)]
    assert (answer.bound_by, answer.delay_ns) == ("device", 10 + 5)


def test_a_path_without_device_is_the_host(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::mm", 0, 70)
    build.op("aten::add", 80, 100)
    answer = critical_path(build.load(path))
    assert answer is not None
    assert (answer.host_ns, answer.device_ns) == (100, 0)
    assert [(p.name, p.duration_ns) for p in answer.ops] == [("aten::mm", 70), ("aten::add", 20)]
    assert critical_path(ProfileBuilder().load(path.with_name("empty.tltrace"))) is None


def test_the_overview_is_plain_json(build: ProfileBuilder, path: Path) -> None:
    loading(build)
    build.memory(10, 100, address=1)
    found = json.loads(json.dumps(profile_overview(build.load(path))))
    assert found["device"][0]["kernels"] == 3
    assert found["steps"]["count"] == 3 and found["steps"]["median_ns"] == 1000
    assert found["memory"] == [{"device": "cuda:0", "peak_bytes": 100, "step": 0}]
    assert found["findings"][0]["rule"] == "data_loading"


def test_a_slow_first_step_does_not_hide_what_the_others_wait_for(
    build: ProfileBuilder, path: Path
) -> None:
    build.step(0, 0, 100_000)
    build.op("aten::mm", 0, 90_000, step=0)
    for step in range(1, 7):
        at = 100_000 + step * 100
        build.step(step, at, at + 100)
        build.span("data", "DataLoader", at, at + 60, step=step)
        build.op("aten::mm", at + 60, at + 100, step=step)
    rules = {finding["rule"]: finding for finding in profile_findings(build.load(path))}
    assert set(rules) == {"data_loading", "slow_start"}
    assert "60.0 %" in rules["data_loading"]["message"]
    start = rules["slow_start"]
    assert (start["step"], start["severity"], start["gain_ns"]) == (0, "info", None)


def test_a_slow_start_beside_a_slow_step_is_no_part_of_its_gain(
    build: ProfileBuilder, path: Path
) -> None:
    at = 0
    for step, length in enumerate([900, 100, 100, 700, 100, 100]):
        build.step(step, at, at + length)
        build.op("aten::mm", at, at + length, step=step)
        at += length
    (finding,) = profile_findings(build.load(path))
    assert (finding["rule"], finding["step"], finding["gain_ns"]) == ("slow_steps", 3, 600)
    assert finding["message"].startswith("1 of 6 steps")


def test_float32_products_on_a_device_with_tensor_cores_are_a_finding(
    build: ProfileBuilder, path: Path
) -> None:
    build.step(0, 0, 1_000_000)
    build.launched("ampere_sgemm_128x64_nn", (0, 10), (10, 800_000), step=0)
    build.launched("sm80_xmma_gemm_f32f32_tf32f32_f32_nn", (20, 30), (800_000, 999_990), step=0)
    data = build.load(path)
    (finding,) = profile_findings(data, limits=limits_of("A100"))
    assert finding["rule"] == "fp32_matmul"
    assert finding["gain_ns"] == int(799_990 * (1 - 19.5 / 156))
    assert "8 times" in finding["message"]
    assert profile_findings(data) == [], "without limits nothing is known of it"


def test_copies_from_unpinned_memory_are_a_finding(build: ProfileBuilder, path: Path) -> None:
    build.step(0, 0, 1000)
    build.launched("Memcpy HtoD (Pageable -> Device)", (0, 10), (10, 40), kind="memcpy", step=0)
    build.launched("Memcpy HtoD (Pinned -> Device)", (20, 30), (40, 50), kind="memcpy", step=0)
    build.launched("gemm", (35, 38), (50, 1000), step=0)
    (finding,) = profile_findings(build.load(path))
    assert (finding["rule"], finding["gain_ns"]) == ("pageable_copies", 30)


def test_a_host_that_is_mostly_in_no_op_is_told_to_sample(
    build: ProfileBuilder, path: Path
) -> None:
    for step in range(3):
        build.step(step, step * 100, step * 100 + 100)
        build.op("aten::mm", step * 100, step * 100 + 30, step=step)
    (finding,) = profile_findings(build.load(path))
    assert (finding["rule"], finding["gain_ns"]) == ("outside_ops", 210)
    assert "sample=True" in finding["advice"]


def test_one_long_start_is_not_taken_for_a_host_that_launches_too_slowly(
    build: ProfileBuilder, path: Path
) -> None:
    op = build.op("aten::conv2d", 0, 90_000)
    for at in range(90_000, 100_000, 1000):
        build.launched("conv", (at, at + 10), (at + 20, at + 990), op_id=op)
    (finding,) = [f for f in profile_findings(build.load(path)) if f["view"] == "idle"]
    assert (finding["rule"], finding["gain_ns"]) == ("long_gap", None)
    assert finding["evidence"]["duration_ns"] == 90_020
