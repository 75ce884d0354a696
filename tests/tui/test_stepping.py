"""Stepping through a trace with the keys of the command table."""

from __future__ import annotations

from pathlib import Path

from textual.pilot import Pilot
from tui_driving import enter, press, run, says, screen_text, shows, until

from tracelens.commands import TABLE
from tracelens_tui import keymap


def position(pilot: Pilot[int]) -> int:
    model = pilot.app.model  # type: ignore[attr-defined]
    return model.position if model.op is not None else -1


async def at(pilot: Pilot[int], place: int) -> None:
    await until(pilot, lambda: position(pilot) == place, f"op {place}, not {position(pilot)}")


def test_every_command_of_the_table_has_its_key_here() -> None:
    keys = {key.id: key.keys.split(",") for key in keymap.all_keys()}

    for spec in TABLE:
        if spec.only != "prompt":
            wanted = {",": "comma"}.get(spec.key, spec.key)
            assert spec.name in keys
            assert spec.key.isdigit() or not spec.key or wanted in keys[spec.name]


def test_no_key_is_given_twice() -> None:
    keys = [part for key in keymap.all_keys() for part in key.keys.split(",") if part]

    assert sorted(keys) == sorted(set(keys))


def test_keys_step_forwards_and_backwards(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "s", "s")
        await at(pilot, 2)
        await press(pilot, "n")  # over the two ops that the composite op calls
        await at(pilot, 5)
        await press(pilot, "N")
        await at(pilot, 2)
        await press(pilot, "S")
        await at(pilot, 1)

    run(nan_trace, script)


def test_continue_stops_at_breakpoints_and_findings_both_ways(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await enter(pilot, "b", "break aten::relu")
        await shows(pilot, "●✓ aten::relu")
        await press(pilot, "c")
        await at(pilot, 1)
        await press(pilot, "c")
        await at(pilot, 9)
        await press(pilot, "c", "c")
        await at(pilot, 19)
        await press(pilot, "C")
        await at(pilot, 17)

    run(nan_trace, script)


def test_one_key_goes_to_the_first_cause_and_one_shows_why(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await at(pilot, 19)
        await press(pilot, "e")
        await shows(pilot, "◆ aten::exp", "◎ loss", "why exp of a number", "fix clamp")
        await press(pilot, "down")  # walks along the chain, and the trace follows
        await at(pilot, 20)
        await press(pilot, "escape")
        await until(pilot, lambda: pilot.app.screen.focused.id == "ops")

    run(nan_trace, script)


def test_inputs_lead_to_producers_and_outputs_to_consumers(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await at(pilot, 19)
        await press(pilot, "<")
        await at(pilot, 17)
        await press(pilot, "<")
        await at(pilot, 16)
        await press(pilot, "<")  # the linear layer of this step reads the loss of the step before
        await at(pilot, 15)
        await press(pilot, ">")
        await at(pilot, 16)

    run(nan_trace, script)


def test_enter_on_a_tensor_walks_to_the_op_at_its_other_end(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await enter(pilot, "g", "19")
        await at(pilot, 19)
        pane = pilot.app.screen.query_one("#tensors")
        await until(pilot, lambda: pane.ports and pane.ports[0].other)
        pane.focus()
        pane.go(0)
        await press(pilot, "enter")
        await at(pilot, 17)

    run(nan_trace, script)


def test_braces_go_to_training_steps_and_g_to_places(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "}")
        await at(pilot, 8)
        await press(pilot, "}")
        await at(pilot, 16)
        await press(pilot, "{")
        await at(pilot, 8)
        await enter(pilot, "g", "step 2")
        await at(pilot, 16)
        await press(pilot, "G")
        await at(pilot, 23)
        await press(pilot, "home")
        await at(pilot, 0)

    run(nan_trace, script)


def test_bookmarks_lead_back(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "s", "s", "s")
        await at(pilot, 3)
        await enter(pilot, "m", "here")
        await shows(pilot, "'✓   aten::exp")
        await press(pilot, "home")
        await enter(pilot, "'", "'here")
        await at(pilot, 3)

    run(nan_trace, script)


def test_a_search_finds_words_and_expressions_and_walks_its_matches(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await enter(pilot, "/", "relu")
        await at(pilot, 1)
        await press(pilot, ".")
        await at(pilot, 9)
        await press(pilot, ",")
        await at(pilot, 1)
        await enter(pilot, "/", "@nan")
        await at(pilot, 19)
        await enter(pilot, "/", "absmax>big")
        await says(pilot, "'big' is not a number")

    run(nan_trace, script)


def test_a_filter_shows_only_what_passes_and_F_shows_all(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        table = pilot.app.screen.query_one("#ops")
        await enter(pilot, "f", "op~exp and step:1-2")
        await until(pilot, lambda: table.row_count == 4)
        await at(pilot, 11)
        await press(pilot, "down")
        await at(pilot, 14)
        await press(pilot, "F")
        await until(pilot, lambda: table.row_count == 24)
        assert table.cursor == 14

    run(nan_trace, script)


def test_the_command_line_runs_the_table_and_says_what_it_does_not_know(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await enter(pilot, ":", "step 5")
        await at(pilot, 5)
        await enter(pilot, ":", "op-info")
        await shows(pilot, "aten::mul  id 5")
        await press(pilot, "escape")
        await enter(pilot, ":", "stpe")
        await says(pilot, "did you mean 'step'?")
        await enter(pilot, ":", "filter aten::log")
        await until(pilot, lambda: pilot.app.screen.query_one("#ops").row_count == 3)

    run(nan_trace, script)


def test_y_copies_the_op_and_how_to_load_it(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await at(pilot, 19)
        await press(pilot, "y")
        await until(pilot, lambda: "by_id(19)" in pilot.app.clipboard)
        assert "aten::exp #19  step 2  forward  in layers.0  at train.py:13" in pilot.app.clipboard
        assert "✖ f32 2×3  1 nan of 6" in pilot.app.clipboard

    run(nan_trace, script)


def test_up_and_down_choose_the_source_line_of_the_forward_op(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        pane = pilot.app.screen.query_one("#source")
        await enter(pilot, "g", "3")
        await until(pilot, lambda: pane.line == 13)
        await press(pilot, "u")
        await until(pilot, lambda: pane.line == 12)
        await press(pilot, "d")
        await until(pilot, lambda: pane.line == 13)

    run(nan_trace, script)


def test_a_users_keymap_changes_keys(nan_trace: Path) -> None:
    Path("pyproject.toml").write_text('[tool.tracelens.keymap]\nstep = "x"\n', encoding="utf-8")

    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "x", "x")
        await at(pilot, 2)

    run(nan_trace, script)


def test_q_leaves(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "q")

    assert run(nan_trace, script).return_code == 0


def test_a_program_that_is_paused_can_be_let_go_on(nan_trace: Path) -> None:
    from tracelens import faces

    async def script(pilot: Pilot[int]) -> None:
        assert "PROGRAM PAUSED" in screen_text(pilot.app)  # type: ignore[arg-type]
        await press(pilot, "ctrl+r")

    assert run(nan_trace, script, paused=True).return_value == faces.GO_ON
