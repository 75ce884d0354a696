"""The profile screen, on a recorded step whose times are written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from tui_driving import compare, press, run, screen_text, shows

from tracelens.events import OpFlag
from tracelens.storage.bulk import BulkShard, Coded, Masked

MS = 1_000_000


@pytest.fixture
def profiled(tmp_path: Path) -> Path:
    """Two steps of 10 ms: data, forward and backward, with three kernels each."""
    path = tmp_path / "profiled.tltrace"
    with BulkShard(path, epoch_unix_ns=0, host="box") as shard:
        starts = np.array([3, 5, 13, 15]) * MS
        names = ["aten::mm", "aten::relu", "aten::mm", "aten::relu"]
        kinds = list(dict.fromkeys(names))
        shard.write("ops", {
            "op_id": np.arange(4), "step": np.array([0, 0, 1, 1]), "ord": np.array([0, 1, 0, 1]),
            "kind": "op", "name": Coded([kinds.index(name) for name in names], kinds),
            "module": Coded([0, 1, 0, 1], ["layers.0", "layers.1"]), "phase": "forward",
            "file": "train.py", "line": np.array([7, 8, 7, 8]), "tid": 1,
            "start_ns": starts, "duration_ns": np.array([MS, MS, MS, MS]),
            "in_shapes": "[[64, 64]]", "flags": int(OpFlag.PROFILED),
        })  # fmt: skip
        shard.write("spans", {
            "span_id": np.arange(2), "step": np.array([0, 1]), "kind": "data",
            "name": "enumerate(DataLoader)#next", "tid": 1,
            "start_ns": np.array([0, 10]) * MS, "duration_ns": np.array([2, 2]) * MS,
        })  # fmt: skip
        shard.write("kernels", {
            "kern_id": np.arange(4), "step": np.array([0, 0, 1, 1]), "op_id": np.arange(4),
            "kind": "kernel", "name": Coded([0, 1, 0, 1], ["gemm_64x64", "relu_kernel"]),
            "device": 0, "stream": 7, "start_ns": starts + MS // 2,
            "duration_ns": np.array([3, 1, 3, 1]) * MS // 2,
        })  # fmt: skip
        shard.write("memory", {
            "step": np.array([0, 0, 1]), "t_ns": np.array([1, 3, 11]) * MS, "device": "cuda:0",
            "size_bytes": np.array([1 << 20, 1 << 19, -(1 << 19)]),
            "address": np.array([1, 2, 2]),
            "allocated_bytes": Masked([0, 0, 0], [True] * 3),
            "owner": Coded([0, 1, 1], ["parameter", "activation"]),
        })  # fmt: skip
        for step in range(2):
            shard.event("step", step=step, start_ns=step * 10 * MS, duration_ns=10 * MS, n_ops=2)
    return path


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
def test_the_profile_shows_the_split_of_the_steps(profiled: Path, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "7")
        await shows(pilot, "2 steps, 20.0 ms", "data")
        compare(pilot.app, "profile")  # type: ignore[arg-type]

    run(profiled, script, size=size)


def test_the_views_follow_each_other_and_ops_are_grouped(profiled: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "7", "right")
        await shows(pilot, "2 steps: enter goes to one")
        await press(pilot, "right")
        await shows(pilot, "time on the device by name", "aten::mm")
        await press(pilot, "v", "v")
        await shows(pilot, "by module", "layers.1")
        await press(pilot, "v")
        await shows(pilot, "by line", "train.py:7")
        await press(pilot, "v", "right")
        await shows(pilot, "gemm_64x64", "75.0%", "relu_kernel")
        await press(pilot, "right")
        await shows(pilot, "idle 16.0 ms of 20.0 ms")
        await press(pilot, "right")
        await shows(pilot, "cuda:0: peak 1.50 MiB", "parameter")
        await press(pilot, "right")
        await shows(pilot, "no collective was recorded")
        await press(pilot, "right")
        await shows(pilot, "saves at most")
        await press(pilot, "right")
        await shows(pilot, "2 steps, 20.0 ms")

    run(profiled, script)


def test_a_row_leads_to_its_ops_and_a_step_to_its_timeline(profiled: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "7", "right", "right")
        await shows(pilot, "time on the device by name")
        await press(pilot, "enter")
        await shows(pilot, "aten::mm")
        assert "aten::relu" not in screen_text(pilot.app)  # type: ignore[arg-type]
        await press(pilot, "F", "7", "left")
        await shows(pilot, "2 steps: enter goes to one")
        await press(pilot, "down", "enter")
        await shows(pilot, "step 1", "gpu0 s7")

    run(profiled, script)


def test_a_trace_without_a_profile_says_so(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "7", "right", "right", "right")
        await shows(pilot, "no device work was recorded")

    run(nan_trace, script)
