"""Colours, their absence, light backgrounds, narrow terminals."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.style import Style
from textual.pilot import Pilot
from tui_driving import press, run, screen_text, shows, until

from tracelens_tui import health, themes


def styles(app: object) -> list[Style]:
    strips = app.screen._compositor.render_strips()  # type: ignore[attr-defined]
    return [segment.style for strip in strips for segment in strip if segment.style is not None]


def test_every_state_has_a_glyph_of_its_own() -> None:
    glyphs = [state.glyph for state in health.LEGEND]

    assert len(set(glyphs)) == len(glyphs)


def test_without_colour_the_same_text_shows(
    tensor_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []

    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        await shows(pilot, "✖   aten::exp", "op 20/24")
        await until(pilot, lambda: pilot.app.screen.query_one("#tensors").ports[0].other)
        texts.append(screen_text(pilot.app))  # type: ignore[arg-type]
        await press(pilot, "3")
        await shows(pilot, "✖ NaN  ∞ Inf", "▒")

    run(tensor_trace, lambda pilot: _colourful(pilot, texts))
    monkeypatch.setenv("NO_COLOR", "1")
    run(tensor_trace, script)

    assert texts[0] == texts[1]


async def _colourful(pilot: Pilot[int], texts: list[str]) -> None:
    await press(pilot, "]")
    await shows(pilot, "✖   aten::exp", "op 20/24")
    await until(pilot, lambda: pilot.app.screen.query_one("#tensors").ports[0].other)
    texts.append(screen_text(pilot.app))  # type: ignore[arg-type]


def test_every_screen_draws_in_every_kind_of_theme(tensor_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]")
        for theme in ("tracelens-light", "ansi-dark", "nord"):
            pilot.app.theme = theme
            for key in "6543":
                await press(pilot, key)
                assert styles(pilot.app)

    run(tensor_trace, script, size=(100, 30))


def test_T_goes_through_dark_light_and_ansi(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        seen = [pilot.app.theme]
        for _ in themes.CYCLE[1:]:
            await press(pilot, "T")
            seen.append(pilot.app.theme)
        assert seen == list(themes.CYCLE)

    run(nan_trace, script)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours by WCAG 2 (4.5 is enough for text)."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize("theme", themes.THEMES, ids=lambda theme: theme.name)
def test_texts_of_our_themes_have_contrast(theme: object) -> None:
    known = theme.to_color_system().generate()  # type: ignore[attr-defined]
    colours = {**known, **themes.extra_variables(theme, known)}  # type: ignore[arg-type]

    for name in ("foreground", "quiet", "error", "warning", "success", "accent", "text-error",
                 "text-warning", "text-success", "text-accent"):  # fmt: skip
        assert contrast(colours[name][:7], colours["background"][:7]) >= 4.5, name


def test_a_narrow_terminal_shows_the_pane_that_was_focused(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        screen = pilot.app.screen
        assert screen.query_one("#source").region.width == 80
        await press(pilot, "tab", "tab")
        await until(pilot, lambda: screen.query_one("#source").region.width in (0, 80))
        await press(pilot, "e")
        await until(pilot, lambda: screen.query_one("#why").region.width == 80)

    run(nan_trace, script, size=(80, 24))


def test_a_tiny_terminal_does_not_end_the_app(tensor_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        for size in ((20, 6), (1, 1), (200, 4)):
            await pilot.resize_terminal(*size)
            await press(pilot, "3", "4", "5", "1")

    run(tensor_trace, script, size=(80, 24))


def test_z_gives_a_pane_the_whole_screen_and_back(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        pane = pilot.app.screen.query_one("#source")
        pane.focus()
        before = pane.region.height
        await press(pilot, "z")
        await until(pilot, lambda: pane.region.height > before)
        await press(pilot, "z")
        await until(pilot, lambda: pane.region.height == before)

    run(nan_trace, script)


def test_the_mouse_chooses_rows_and_screens(nan_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await pilot.click("#ops", offset=(10, 4))
        await until(pilot, lambda: pilot.app.model.position == 3)  # type: ignore[attr-defined]
        await pilot.click("Tabs", offset=(46, 0))
        await until(pilot, lambda: type(pilot.app.screen).__name__ == "FindingsScreen")

    run(nan_trace, script)
