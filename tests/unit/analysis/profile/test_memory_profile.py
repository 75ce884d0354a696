"""Peaks of memory and what held them."""

from __future__ import annotations

from pathlib import Path

from profile_builder import ProfileBuilder

from tracelens.analysis.profile.memory import UNRECORDED, memory


def held(holders: list) -> dict[str, int]:
    return {holder.name: holder.size_bytes for holder in holders}


def test_the_peak_names_its_holders(build: ProfileBuilder, path: Path) -> None:
    build.step(3, 0, 100)
    op = build.op("aten::mm", 0, 50, module="net.fc", file="train.py", line=4)
    build.memory(1, 100, address=1, owner="parameter")
    build.memory(2, 50, address=2, owner="activation", op_id=op)
    build.memory(3, -50, address=2)
    build.memory(4, 300, address=2, owner="gradient", op_id=op)
    build.memory(5, 30, address=3, file="loss.py", line=9)
    build.memory(6, -300, address=2)
    (answer,) = memory(build.load(path))
    assert (answer.device, answer.peak_bytes, answer.peak_ns, answer.peak_step) == (
        "cuda:0",
        430,
        5,
        3,
    )
    assert (answer.allocations, answer.frees, answer.end_bytes) == (4, 2, 130)
    assert held(answer.holders["owner"]) == {"gradient": 300, "parameter": 100, "(unknown)": 30}
    assert held(answer.holders["op"]) == {"aten::mm": 300, "(unknown)": 130}
    assert held(answer.holders["module"]) == {"net.fc": 300, "(unknown)": 130}
    assert held(answer.holders["line"]) == {"train.py:4": 300, "(unknown)": 100, "loss.py:9": 30}
    assert answer.fragmentation is None


def test_what_the_profiler_counts_is_believed(build: ProfileBuilder, path: Path) -> None:
    build.memory(1, 10, address=1, allocated_bytes=1010, reserved_bytes=2000)
    build.memory(2, 20, address=2, allocated_bytes=1030, reserved_bytes=2060)
    build.memory(3, -10, address=1, allocated_bytes=1020, reserved_bytes=2060)
    (answer,) = memory(build.load(path))
    assert (answer.peak_bytes, answer.reserved_bytes, answer.fragmentation) == (1030, 2060, 0.5)
    assert held(answer.holders["owner"]) == {UNRECORDED: 1000, "(unknown)": 30}
    assert answer.curve["allocated_bytes"] == [1010, 1030, 1020]


def test_frees_of_what_was_allocated_before_raise_the_start(
    build: ProfileBuilder, path: Path
) -> None:
    build.memory(1, -500, address=9)
    build.memory(2, 100, address=1)
    (answer,) = memory(build.load(path))
    assert (answer.peak_bytes, answer.end_bytes) == (100, 100)
    assert answer.curve["allocated_bytes"] == [0, 100]


def test_memory_that_is_kept_grows_from_step_to_step(build: ProfileBuilder, path: Path) -> None:
    for step in range(5):
        build.step(step, step * 100, step * 100 + 100)
        build.memory(step * 100 + 10, 64, address=step)
        build.memory(step * 100 + 20, 1000, address=100)
        build.memory(step * 100 + 30, -1000, address=100)
    (answer,) = memory(build.load(path))
    assert answer.step_growth_bytes == 64


def test_devices_are_told_apart(build: ProfileBuilder, path: Path) -> None:
    build.memory(1, 10, address=1, device="cpu")
    build.memory(2, 99, address=1, device="cuda:0")
    build.memory(3, -10, address=1, device="cpu")
    gpu, cpu = memory(build.load(path))
    assert (gpu.device, gpu.peak_bytes, cpu.device, cpu.peak_bytes) == ("cuda:0", 99, "cpu", 10)


def test_without_allocations_there_is_no_answer(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::mm", 0, 10)
    assert memory(build.load(path)) == []
