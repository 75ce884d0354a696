"""Collectives of one rank and of several."""

from __future__ import annotations

from pathlib import Path

import pytest
from profile_builder import ProfileBuilder

from tracelens.analysis.profile.collectives import canonical
from tracelens.analysis.profile.comm import communication


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
    assert communication(build.load(path)) is None
