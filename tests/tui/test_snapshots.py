"""Every screen as text, at the size of an old terminal and of a large one."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui_driving import Script, compare, enter, press, run, shows, until

SIZES = [(80, 24), (120, 40)]


@pytest.fixture(params=SIZES, ids=["80x24", "120x40"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    size: tuple[int, int] = request.param
    return size


def snap(path: Path, size: tuple[int, int], name: str, script: Script) -> None:
    async def then_compare(pilot: Pilot[int]) -> None:
        await script(pilot)
        await pilot.pause()
        compare(pilot.app, name)  # type: ignore[arg-type]

    run(path, then_compare, size=size)


def test_the_ops_screen_shows_rows_source_tensors_and_place(
    nan_trace: Path, size: tuple[int, int]
) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await shows(pilot, "op 20/24", "▶")
        await until(pilot, lambda: pilot.app.screen.query_one("#tensors").ports[0].other)
        await shows(pilot, "900 ns |x|" if size[0] > 100 else "✖")

    snap(nan_trace, size, "ops", script)


def test_the_chain_leads_from_the_first_cause_to_the_loss(
    nan_trace: Path, size: tuple[int, int]
) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "e")
        await shows(pilot, "◆", "◎ loss", "clamp its input")
        await until(pilot, lambda: pilot.app.screen.query_one("#tensors").ports[0].other)

    snap(nan_trace, size, "why", script)


def test_a_file_that_is_not_here_is_told_with_what_the_trace_knows(
    nan_trace: Path, size: tuple[int, int]
) -> None:
    nan_trace.with_name("train.py").unlink()

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "train.py is not on this machine", "y = a @ b")
        await until(pilot, lambda: pilot.app.screen.query_one("#tensors").ports[-1].other)

    snap(nan_trace, size, "missing-source", script)


def test_the_findings_screen_shows_evidence(nan_trace: Path, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "5")
        await shows(pilot, "exp-overflow", "fix")

    snap(nan_trace, size, "findings", script)


def test_the_modules_screen_shows_health_and_time(nan_trace: Path, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]", "2")
        await shows(pilot, "layers", "100%")

    snap(nan_trace, size, "modules", script)


def test_the_timeline_shows_curves_and_lanes(nan_trace: Path, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await shows(pilot, "op 20/24")
        await press(pilot, "4")
        await shows(pilot, "loss", "forward", "aten::exp #19")

    snap(nan_trace, size, "timeline", script)


def test_the_tensor_screen_shows_a_heatmap(tensor_trace: Path, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await shows(pilot, "op 20/24")
        await press(pilot, "3")
        await shows(pilot, "1 NaN, 1 +Inf of 768", "∞ Inf")

    snap(tensor_trace, size, "tensor-heatmap", script)


def test_the_tensor_screen_shows_values(tensor_trace: Path, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await shows(pilot, "op 20/24")
        await press(pilot, "3")
        await shows(pilot, "1 NaN, 1 +Inf of 768")
        await press(pilot, "v", "x")
        await shows(pilot, "element [5, 7] = ✖ nan")

    snap(tensor_trace, size, "tensor-values", script)


def test_the_tensor_screen_says_how_to_store_values(nan_trace: Path, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await shows(pilot, "op 20/24")
        await press(pilot, "3")
        await shows(pilot, "Its values were not stored", "tl.tap")

    snap(nan_trace, size, "tensor-none", script)


def test_the_compare_screen_pairs_ops_of_two_traces(nan_trace: Path, size: tuple[int, int]) -> None:
    from trace_builder import training_run

    training_run(nan_trace.with_name("other.tltrace"), hit=False).close()

    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "6")
        await enter(pilot, "o", str(nan_trace.with_name("other.tltrace")))
        await shows(pilot, "other.tltrace", "aten::linear")
        await press(pilot, "x")
        await shows(pilot, "≠")

    snap(nan_trace, size, "compare", script)


def test_the_runs_screen_lists_states(nan_trace: Path, size: tuple[int, int]) -> None:
    from trace_builder import TraceBuilder, training_run

    training_run(nan_trace.with_name("killed.tltrace"), hit=False).kill()
    TraceBuilder(nan_trace.with_name("live.tltrace"))
    newer = nan_trace.with_name("newer.tltrace")
    newer.mkdir()
    (newer / "manifest.json").write_text(
        '{"format": "tracelens", "version": "9.0", "min_reader": "9.0"}'
    )

    async def script(pilot: Pilot[int]) -> None:
        await shows(pilot, "■ closed", "✝ killed", "● live", "! unreadable")

    async def then_compare(pilot: Pilot[int]) -> None:
        await script(pilot)
        compare(pilot.app, "runs")  # type: ignore[arg-type]

    import os

    for at, name in enumerate(("run", "killed", "live", "newer")):
        folder = nan_trace.with_name(f"{name}.tltrace")
        for each in (folder, folder / "_shards", folder / "_live"):
            if each.exists():
                os.utime(each, (1_700_000_000 - at, 1_700_000_000 - at))
    run(None, then_compare, size=size, directory=Path())


def test_the_help_is_that_of_the_focused_pane(nan_trace: Path, size: tuple[int, int]) -> None:
    # Not a snapshot: the page is made from the command table, and changes with it.
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "?")
        await shows(pilot, "Every recorded op in the order it began", "Moving", "uninitialised")
        await press(pilot, "escape")
        pilot.app.screen.query_one("#source").focus()
        await press(pilot, "?")
        await shows(pilot, "The source file of the current op")

    run(nan_trace, script, size=size)
