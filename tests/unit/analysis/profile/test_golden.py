"""The analyses on real traces of others, against figures that several tools agree on.

The traces are no part of the project: where they are not beside it, these tests are skipped.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tracelens.analysis.profile.comm import communication
from tracelens.analysis.profile.critical import critical_path
from tracelens.analysis.profile.data import ProfileData, load_profile
from tracelens.analysis.profile.device import device_totals
from tracelens.analysis.profile.devices import limits_of
from tracelens.analysis.profile.findings import profile_findings
from tracelens.analysis.profile.idle import idle, stream_idle
from tracelens.analysis.profile.kernels import top_kernels, top_ops
from tracelens.analysis.profile.launch import launches
from tracelens.analysis.profile.memory import memory
from tracelens.analysis.profile.roofline import roofline
from tracelens.analysis.profile.steps import split_steps
from tracelens.convert.importers import importer_of
from tracelens.storage.reader import open_trace

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
GOLDEN = DATA / "golden_profiles.json"

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="the traces are not beside the project")


@cache
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


@pytest.fixture(scope="module")
def profile_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Import a trace once and return its profile."""
    made: dict[str, ProfileData] = {}

    def profile(name: str) -> ProfileData:
        if name not in made:
            out = tmp_path_factory.mktemp("golden") / "run.tltrace"
            source = DATA / golden()[name]["file"]
            importer_of(source)(source, out)
            made[name] = load_profile(open_trace(out))
        return made[name]

    return profile


NW0, NW4 = "shared/tb_resnet50_nw0", "shared/tb_resnet50_nw4"
QWEN, NCCL = "shared/h100_Qwen_Qwen1.5-0.5B-Chat", "shared/nccl_a100_2ranks_r0"


@pytest.mark.parametrize("name", sorted(golden()))
def test_device_totals_are_those_that_peers_agree_on(name: str, profile_of: Any) -> None:
    expected, data = golden()[name], profile_of(name)
    if not expected["n_kernels"]:
        assert all(totals.kernels == 0 for totals in device_totals(data))
        return
    totals = device_totals(data)[0]
    assert totals.kernels == expected["n_kernels"]
    assert totals.kernel_sum_ns == pytest.approx(expected["kernel_sum_us"] * 1e3, rel=1e-3)
    assert totals.busy_ns == pytest.approx(expected["busy_us"] * 1e3, rel=1e-3)
    assert totals.span_ns == pytest.approx(expected["span_us"] * 1e3, rel=1e-3)
    assert totals.idle_share is not None
    assert 100 * totals.idle_share == pytest.approx(expected["idle_pct"], abs=0.25)
    assert totals.comm_ns == pytest.approx(expected["comm_us"] * 1e3, rel=1e-3)
    assert totals.exposed_comm_ns == pytest.approx(expected["exposed_comm_us"] * 1e3, rel=1e-3)
    top = top_kernels(data)
    for text, count, total_us in expected["top5"]:
        same = [group for group in top if group.name[:120] == text[:120]]
        assert sum(group.count for group in same) >= count
        assert sum(group.total_ns for group in same) >= total_us * 999


@pytest.mark.parametrize("name", sorted(n for n, entry in golden().items() if entry["steps"]))
def test_steps_have_their_times_and_their_share_of_busy_device(name: str, profile_of: Any) -> None:
    answer = split_steps(profile_of(name))
    expected = golden()[name]["steps"]
    found = {f"ProfilerStep#{step.step}": step for step in answer.steps}
    assert set(found) == set(expected)
    for text, step in found.items():
        assert step.duration_ns == round(expected[text]["dur_us"] * 1e3)
        busy = 100 * step.busy_ns / step.duration_ns
        assert busy == pytest.approx(expected[text]["gpu_busy_pct"], abs=0.01)
        assert sum(part.duration_ns for part in step.parts) == step.duration_ns


def test_the_loader_takes_the_share_that_torch_tb_profiler_says(profile_of: Any) -> None:
    slow, fast = profile_of(NW0), profile_of(NW4)
    assert 100 * split_steps(slow, windows="device").whole.share("data") == pytest.approx(
        33.37, abs=0.01
    )
    assert 100 * split_steps(fast, windows="device").whole.share("data") < 1
    assert profile_findings(slow)[0]["rule"] == "data_loading"
    assert "data_loading" not in {finding["rule"] for finding in profile_findings(fast)}
    answer = idle(slow)
    assert answer is not None and max(answer.reasons, key=answer.reasons.__getitem__) == "data"


def test_ops_have_the_device_time_that_amd_says(profile_of: Any) -> None:
    found = {group.name: group for group in top_ops(profile_of(QWEN))}
    assert found["aten::mul"].self_device_ns == pytest.approx(6_752_900, rel=1e-4)
    assert found["aten::mm"].self_device_ns == pytest.approx(6_668_682, rel=1e-4)
    assert found["aten::mm"].count == 96


def test_the_roofline_of_a_matrix_product_is_amds(profile_of: Any) -> None:
    answer = roofline(profile_of(QWEN), limits_of("H100"))
    assert answer is not None
    line = next(g for g in answer.groups if g.name == "aten::mm" and g.flops == 51_581_550_592)
    assert line.mean_ns == pytest.approx(84_480, rel=1e-3)
    assert line.tflops == pytest.approx(610.7, rel=1e-3)


def test_the_peak_of_memory_is_the_profilers(profile_of: Any) -> None:
    peak = max(answer.peak_bytes for answer in memory(profile_of(QWEN)) if answer.device != "cpu")
    assert peak / 2**20 == pytest.approx(1991.8, abs=0.1)


def test_launches_and_stream_gaps_are_hta_s(profile_of: Any) -> None:
    data = profile_of(NCCL)
    found = launches(data)
    assert found is not None
    assert (found.linked, round(found.mean_delay_ns or 0)) == (3774, 27_343)
    assert round(found.median_delay_ns or 0) == 1956
    gaps = {stream.stream: stream for stream in stream_idle(data)}
    assert (gaps[7].host_wait_ns, gaps[7].kernel_wait_ns) == (540_091_317, 2_150_343)
    assert (gaps[40].host_wait_ns, gaps[40].other_ns) == (583_924_256, 0)
    comm = communication(data)
    assert comm is not None
    assert 100 * comm.hidden_share == pytest.approx(15.61, abs=0.01)


@pytest.mark.parametrize(
    ("name", "step", "bound_by", "share"),
    [
        (NCCL, 5, "host", 1.0),
        ("shared/h100_Falconsai_nsfw_image_detection", 6, "host", 0.998),
        ("shared/ns_resolution_v100", 103, "device", 0.988),
        (QWEN, 6, "device", 0.898),
    ],
)
def test_the_critical_path_is_bound_by_what_hta_says(
    name: str, step: int, bound_by: str, share: float, profile_of: Any
) -> None:
    whole = profile_of(name)
    answer = critical_path(load_profile(whole.reader, whole.rank, (step, step + 1)))
    assert answer is not None
    assert answer.bound_by == bound_by
    part = answer.host_ns if bound_by == "host" else answer.device_ns
    assert part / answer.duration_ns == pytest.approx(share, abs=0.02)
