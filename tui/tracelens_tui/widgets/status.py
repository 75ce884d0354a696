"""The two lines at the top: what is open and where the cursor is, and the screens."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from tracelens_tui.model import TraceModel
from tracelens_tui.texts import count, fit, safe

SCREENS = (
    ("1", "ops"),
    ("2", "modules"),
    ("3", "tensor"),
    ("4", "timeline"),
    ("5", "findings"),
    ("6", "compare"),
    ("7", "profile"),
    ("0", "runs"),
)
"""Key and name of every screen, in the order of the tabs."""

_STATE_GLYPHS = {"live": "●", "closed": "■", "killed": "✝", "failed": "✝", "disk_full": "✝"}


class Status(Static):
    """Trace, step, position, findings, state."""

    DEFAULT_CSS = "Status { height: 1; background: $panel; color: $foreground; padding: 0 1; }"

    def show(self, model: TraceModel | None, note: str = "", *, paused: bool = False) -> None:
        """Draw the line; ``paused``: the program that writes the trace stands still."""
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("tracelens", "bold")
        if model is None:
            text.append(f"  {note}")
            self.update(text)
            return
        text.append(f"  {fit(safe(model.path.name), 28)}")
        if len(model.ranks) > 1:
            text.append(f"  rank {model.rank} of {model.ranks[0]}-{model.ranks[-1]}")
        if model.op is not None:
            text.append(f"  step {model.op.step}")
        total = model.total
        text.append(f"  op {count(model.position + 1) if total else '0'}/{count(total)}")
        story = model.story
        errors = sum(f.get("severity") == "error" for f in story.findings)
        if errors:
            text.append(f"  ✖ {errors} finding{'s' if errors > 1 else ''}", "bold")
        elif story.hits:
            text.append(f"  {count(story.hits)} non-finite, all masked")
        if paused:
            text.append("  ‖ PROGRAM PAUSED  ^r goes on  ^x ends it", "bold")
        elif model.state == "live":
            text.append("  ● LIVE" if model.following else "  ‖ live, paused", "bold")
        elif model.state not in ("closed", ""):
            text.append(f"  {_STATE_GLYPHS.get(model.state, '!')} {model.state}")
        if story.problems:
            n = len(story.problems)
            text.append(f"  ! {n} problem{'s' if n > 1 else ''}", "bold")
        if note:
            text.append(f"  {note}")
        self.update(text)


class Tabs(Static):
    """The screens, the current one highlighted."""

    DEFAULT_CSS = """
    Tabs { height: 1; background: $panel; color: $quiet; padding: 0 1; link-style: none;
        link-color: $quiet; link-background: $panel; link-style-hover: bold; }
    """

    def __init__(self, current: str) -> None:
        text = Text(no_wrap=True)
        for key, name in SCREENS:
            style = "reverse bold" if name == current else ""
            # A link, not a widget each: one line of text is cheap to draw.
            piece = Text(f"{key} {name} ", style)
            piece.apply_meta({"@click": f"app.screen('{name}')"})
            text.append_text(piece)
        super().__init__(text)
