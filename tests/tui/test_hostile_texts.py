"""Texts of a trace are shown as they are: none is taken for markup, keys or colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from tui_driving import press, run, screen_text, shows

from tracelens.storage.bulk import BulkShard, Coded

MARKUP = [
    "[bold]x[/bold]",
    "[/nope] a",
    "[@click=app.quit]q[/]",
    "[link=file:///etc]y",
    "\x1b[2J\x9bz",
]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A profile in a folder of such a name, with such names of ops, files, devices and findings."""
    path = tmp_path / "[red]run.tltrace"
    names = Coded(np.arange(5), MARKUP)
    times = {"step": np.zeros(5), "start_ns": np.arange(5) * 1000, "duration_ns": np.full(5, 800)}
    with BulkShard(path, epoch_unix_ns=0, host="box") as shard:
        shard.write("ops", {
            "op_id": np.arange(5), "ord": np.arange(5), "name": names, "module": names, "tid": 1,
            "file": names, "line": 3, "phase": "forward", "nan_count": np.arange(5), **times,
        })  # fmt: skip
        shard.write("kernels", {
            "kern_id": np.arange(5), "op_id": np.arange(5), "name": names, "kind": "kernel",
            "device": 0, "stream": 7, **times,
        })  # fmt: skip
        shard.write("memory", {
            "step": np.zeros(5), "t_ns": np.arange(5) * 1000, "device": MARKUP[1],
            "size_bytes": np.full(5, 64), "address": np.arange(5),
        })  # fmt: skip
        shard.event("step", step=0, start_ns=0, duration_ns=5000, n_ops=5)
        shard.event("finding", kind="nonfinite", rule=MARKUP[0], severity="error", step=0, op_id=1,
                    message=MARKUP[1], advice=MARKUP[2])  # fmt: skip
    return path


def test_no_text_of_a_trace_is_taken_for_markup(marked: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        for key in "123457":
            await press(pilot, key, "down", "question_mark", "escape")
            await pilot.pause(0.1)
            assert "\x1b" not in screen_text(pilot.app)
        for _ in range(5):
            await press(pilot, "right")
        await shows(pilot, "[/nope] a")
        await press(pilot, "0")
        await shows(pilot, "[red]run.tltrace")

    run(marked, script, size=(120, 40))
