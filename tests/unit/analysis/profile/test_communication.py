"""Collectives of one rank and of several."""

from __future__ import annotations

from pathlib import Path

import pytest
from profile_builder import ProfileBuilder

from tracelens.analysis.profile.collectives import canonical
from tracelens.analysis.profile.comm import bus_factor, communication
from tracelens.analysis.profile.data import load_profile
from tracelens.analysis.profile.ranks import compare_ranks
from tracelens.storage.reader import open_trace


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "allreduce"),
        ("ncclKernel_ReduceScatter_RING_LL_Sum_half", "reducescatter"),
        ("_allgather_base", "allgather"),
        ("all_to_allv", "alltoall"),
        ("ncclKernel_SendRecv", "sendrecv"),
        ("reduce_scatter_tensor_coalesced", "reducescatter"),
        ("rcclDevKernel_Generic_1", "generic"),
        ("all-reduce.12", "allreduce"),
    ],
)
def test_collectives_have_one_name(name: str, known: str) -> None:
    assert canonical(name) == known


def test_the_factors_are_those_of_nccl_tests() -> None:
    assert bus_factor("allreduce", 8) == 2 * 7 / 8
    assert bus_factor("allgather", 8) == bus_factor("reducescatter", 8) == 7 / 8
    assert bus_factor("broadcast", 8) == bus_factor("sendrecv", 8) == 1
    assert bus_factor("allreduce", 1) == 1


def test_bandwidth_and_exposure_of_collectives(build: ProfileBuilder, path: Path) -> None:
    names = {"kind": "comm", "collective": "allreduce", "comm_ranks": 4, "comm_group": "dp"}
    build.kernel("ncclKernel_AllReduce", 0, 1000, stream=9, size_bytes=8000, **names)
    build.kernel("ncclKernel_AllReduce", 2000, 2500, stream=9, size_bytes=8000, **names)
    build.kernel("gemm", 500, 1500)
    answer = communication(build.load(path))
    assert answer is not None
    assert (answer.where, answer.total_ns, answer.exposed_ns) == ("device", 1500, 1000)
    (group,) = answer.groups
    assert (group.count, group.mean_ns, group.min_ns) == (2, 750, 500)
    assert group.algorithm_gbps == pytest.approx(8000 / 750)
    assert group.bus_gbps == pytest.approx(8000 / 750 * 1.5)
    assert group.best_bus_gbps == pytest.approx(16 * 1.5)


def test_host_collectives_of_gloo_are_found(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::mm", 0, 100)
    build.span("annotation", "gloo:all_reduce", 80, 200)
    answer = communication(build.load(path))
    assert answer is not None
    assert (answer.where, answer.groups[0].collective) == ("host", "allreduce")
    assert (answer.total_ns, answer.exposed_ns) == (120, 120)


def test_without_collectives_there_is_no_answer(build: ProfileBuilder, path: Path) -> None:
    build.kernel("gemm", 0, 10)
    data = build.load(path)
    assert communication(data) is None
    assert compare_ranks([data]) is None


def run_of(path: Path, late_ns: dict[int, int], steps: int = 4) -> list:
    """Ranks whose collective ends together at 1000 of each step, joined ``late_ns`` after 100."""
    for rank, late in late_ns.items():
        build = ProfileBuilder(rank)
        for step in range(steps):
            at = step * 1000 + rank * 77  # clocks that disagree
            build.step(step, at, at + 1000)
            build.kernel(
                "ncclKernel_AllReduce", at + 100 + late, at + 900, step=step, kind="comm",
                collective="allreduce", comm_group="0",
            )  # fmt: skip
        build.write(path)
    reader = open_trace(path)
    return [load_profile(reader, rank) for rank in late_ns]


def test_the_rank_that_others_wait_for_is_the_straggler(path: Path) -> None:
    answer = compare_ranks(run_of(path, {0: 0, 1: 10, 2: 600, 3: 5}))
    assert answer is not None
    assert (answer.straggler, answer.matched) == (2, 4)
    assert answer.waited_ns == 4 * 600
    assert answer.waited_share == pytest.approx(0.6)
    assert [line.last for line in answer.ranks] == [0, 0, 4, 0]
    assert [line.wait_ns for line in answer.ranks] == [2400, 2360, 0, 2380]
    assert answer.skewed[0].skew_ns == 600 and answer.skewed[0].last_rank == 2


def test_ranks_in_step_have_no_straggler(path: Path) -> None:
    answer = compare_ranks(run_of(path, {0: 0, 1: 10, 2: 20}))
    assert answer is not None and answer.straggler is None
