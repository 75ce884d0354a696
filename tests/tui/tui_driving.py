"""Drives the application in a test: keys in, the text of the screen out."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import textual
from textual.pilot import Pilot

from tracelens_tui.app import TraceLensApp

SNAPSHOTS = Path(__file__).parent / "snapshots"
PINNED = "8.2.8"
"""Snapshots are of this version of Textual; another may draw a border differently."""

_PATIENCE_S = 30.0

Script = Callable[[Pilot[int]], Awaitable[None]]


def screen_text(app: TraceLensApp) -> str:
    """Return the screen as text, spaces at the ends of lines left out."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips)


async def until(pilot: Pilot[int], condition: Callable[[], object], what: str = "") -> None:
    """Wait until a condition holds."""
    app = pilot.app
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while not condition():
        if asyncio.get_running_loop().time() > end:
            pytest.fail(f"waited in vain for {what or condition}:\n{screen_text(app)}")
        await pilot.pause(0.02)


async def shows(pilot: Pilot[int], *texts: str) -> None:
    """Wait until the screen shows some texts."""
    app = pilot.app
    await until(pilot, lambda: all(text in screen_text(app) for text in texts), repr(texts))


async def says(pilot: Pilot[int], text: str) -> None:
    """Wait until something is told in passing."""
    app = pilot.app
    await until(pilot, lambda: any(text in n.message for n in app._notifications), repr(text))


async def press(pilot: Pilot[int], *keys: str) -> None:
    """Press keys, each when the one before has been dealt with."""
    for key in keys:
        await pilot.press(key)
        await pilot.pause()


async def enter(pilot: Pilot[int], key: str, text: str) -> None:
    """Open the line at the bottom with a key, type a text, and enter it."""
    await press(pilot, key)
    line = pilot.app.screen.query_one("Prompt Input")
    line.value = text
    await press(pilot, "enter")


def run(
    path: Path | None, script: Script, *, size: tuple[int, int] = (120, 40), **options: object
) -> TraceLensApp:
    """Run the application on a trace, drive it, and return it as it was at the end."""
    app = TraceLensApp(path, **options)

    async def session() -> None:
        async with app.run_test(size=size) as pilot:
            if path is not None:
                await until(pilot, lambda: app.model is not None, "the trace")
                await until(pilot, lambda: app.model.story.is_read, "the findings")
                await pilot.pause()
            await script(pilot)

    asyncio.run(session())
    return app


def compare(app: TraceLensApp, name: str) -> None:
    """Compare the screen with the stored one; `UPDATE_SNAPSHOTS=1` stores it instead."""
    if textual.__version__ != PINNED:
        return
    found = screen_text(app).rstrip() + "\n"
    # What depends on the clock and on the compressor.
    found = re.sub(r"\b\d+ (s|min|h|d)\b(?=\s|$)", lambda m: "0 s".rjust(len(m[0])), found)
    found = re.sub(r"\b[\d.]+ [KM]iB\b", lambda m: "0 KiB".rjust(len(m[0])), found)
    file = SNAPSHOTS / f"{name}-{app.size.width}x{app.size.height}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.write_text(found, encoding="utf-8")
    assert file.exists(), f"{file.name} is not there: run again with UPDATE_SNAPSHOTS=1"
    assert found == file.read_text(encoding="utf-8")
