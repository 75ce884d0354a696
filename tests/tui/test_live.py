"""Traces that are still being written, were killed, torn, or are of a newer version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui_driving import press, run, says, screen_text, shows, until
from tui_traces import finding

from trace_builder import TraceBuilder, training_run
from tracelens.errors import TraceError
from tracelens_tui.start import view


def test_new_ops_of_a_running_program_show_and_space_pauses_the_screen(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "live.tltrace")
    trace.op("aten::first")

    async def script(pilot: Pilot[int]) -> None:
        table = pilot.app.screen.query_one("#ops")
        await shows(pilot, "aten::first", "● LIVE")
        trace.op("aten::second", step=1)
        trace.step(0, loss=0.25)
        await until(pilot, lambda: table.row_count == 2 and table.cursor == 1)
        await press(pilot, "space")
        await shows(pilot, "‖ live, paused")
        trace.op("aten::third", step=1)
        await until(pilot, lambda: table.row_count == 3)
        assert table.cursor == 1
        await press(pilot, "G")
        await shows(pilot, "● LIVE")
        assert table.cursor == 2
        trace.event("finding", **finding())
        await shows(pilot, "✖ 1 finding")
        await press(pilot, "4")
        await shows(pilot, "1 step", "loss")

    run(trace.path, script)


def test_moving_back_pauses_following(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "live.tltrace", hit=False)

    async def script(pilot: Pilot[int]) -> None:
        table = pilot.app.screen.query_one("#ops")
        await press(pilot, "G")
        await until(pilot, lambda: table.cursor == 23)
        await press(pilot, "k")
        await shows(pilot, "‖ live, paused")

    run(trace.path, script)


def test_the_end_of_the_run_is_told_and_everything_stays(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "live.tltrace", hit=False)

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "● LIVE")
        trace.close()
        await says(pilot, "the run has ended: closed")
        await until(pilot, lambda: pilot.app.screen.query_one("#ops").row_count == 24)
        await until(pilot, lambda: "LIVE" not in screen_text(pilot.app))  # type: ignore[arg-type]

    run(trace.path, script)


def test_a_killed_run_opens_and_explains_itself(tmp_path: Path) -> None:
    killed = training_run(tmp_path / "killed.tltrace").kill()

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "✝ killed", "problem")
        await press(pilot, "]", "e")
        await shows(pilot, "◆", "aten::exp")
        await press(pilot, "5")
        await shows(pilot, "ended without closing the trace")

    run(killed, script)


def test_a_damaged_segment_is_told_and_the_rest_is_shown(nan_trace: Path) -> None:
    (segment,) = nan_trace.glob("stats/*/*.parquet")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(bytes(data))

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "aten::linear", "! 1 problem")
        await press(pilot, "5")
        await shows(pilot, "checksum")

    run(nan_trace, script, size=(160, 40))


def test_files_that_vanish_under_an_open_trace_do_not_end_the_app(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        shutil.rmtree(nan_trace / "ops")
        await press(pilot, "s", "5", "2", "4", "3", "1", "e", "escape", "G", "?", "escape")
        await shows(pilot, "1 ops")

    run(nan_trace, script)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ('{"format": "tracelens", "version": "9.0", "min_reader": "9.0"}', "9.0"),
        ('{"form', "manifest"),
        ("", ""),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, manifest: str, words: str
) -> None:
    trace = tmp_path / "odd.tltrace"
    trace.mkdir()
    if manifest:
        (trace / "manifest.json").write_text(manifest, encoding="utf-8")

    with pytest.raises(TraceError) as refused:
        view(str(trace))

    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unreadable_run_of_the_list_is_told_and_the_list_stays(tmp_path: Path) -> None:
    (tmp_path / "odd.tltrace").mkdir()

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "odd.tltrace", "! unreadable")
        await press(pilot, "enter")
        await until(pilot, lambda: pilot.app._notifications)
        await shows(pilot, "odd.tltrace")

    run(None, script, directory=tmp_path)


def test_an_empty_trace_and_an_empty_directory_are_told(tmp_path: Path) -> None:
    empty = TraceBuilder(tmp_path / "empty.tltrace").close()

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "no op was recorded")
        await press(pilot, "s", "]", "e", "<", "2", "3", "4", "5", "6", "1", "y", "G")

    run(empty, script)

    async def nothing(pilot: Pilot[int]) -> None:
        await shows(pilot, "tracelens run script.py")

    (tmp_path / "none").mkdir()
    run(None, nothing, directory=tmp_path / "none")


def test_control_characters_of_a_trace_never_reach_the_terminal(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "odd.tltrace")
    trace.op("aten::\x1b[31mred\x07", module="a\rb")
    trace.event("note", kind="drop", message="\x1b]0;title\x07 gone", severity="warning")
    trace.close()

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "\\x1b[31mred", "a\\x0db")
        await press(pilot, "i")
        await until(pilot, lambda: len(pilot.app.screen_stack) > 2)
        assert "\x1b" not in screen_text(pilot.app)  # type: ignore[arg-type]
        await press(pilot, "escape", "5")
        await shows(pilot, "gone")
        assert "\x1b" not in screen_text(pilot.app)  # type: ignore[arg-type]

    run(trace.path, script)


def test_a_run_of_the_list_opens_and_another_takes_its_place(nan_trace: Path) -> None:
    training_run(nan_trace.with_name("second.tltrace"), steps=5, hit=False).close()

    async def script(pilot: Pilot[int]) -> None:
        table = pilot.app.screen.query_one("#runs")
        await shows(pilot, "✖ 1 finding", "✓ clean")
        for name, ops in (("run.tltrace", "1/24"), ("second.tltrace", "1/40")):
            rows = [table._rows.row(at).path.name for at in range(2)]
            table.go(rows.index(name))
            await press(pilot, "enter")
            await shows(pilot, name, ops)
            await press(pilot, "0")
            await shows(pilot, "✓ clean")

    run(None, script, directory=nan_trace.parent)


def test_K_goes_to_the_next_rank_of_a_run(tmp_path: Path) -> None:
    for rank in (0, 1):
        trace = TraceBuilder(tmp_path / "ranks.tltrace", rank=rank, world_size=2)
        trace.op(f"aten::of_rank_{rank}")
        trace.close()

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "rank 0 of 0-1", "aten::of_rank_0")
        await press(pilot, "K")
        await shows(pilot, "rank 1 of 0-1", "aten::of_rank_1")
        await press(pilot, "K")
        await shows(pilot, "rank 0 of 0-1", "aten::of_rank_0")

    run(trace.path, script)
