"""What the texts of ``tracelens profile`` have in common."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

NO_DEVICE = "No device work was recorded: the program ran on the CPU, or its device was not traced."
NAME_WIDTH = 70


def percent(part_ns: int, whole: Json) -> str:
    """Return a part of what has a ``duration_ns``, in percent."""
    return f"{100 * part_ns / max(whole['duration_ns'], 1):.2f}%"


def short(text: str, width: int = NAME_WIDTH) -> str:
    """Return a text cut to a width."""
    return text if len(text) <= width else text[: width - 1] + "…"


def more(left: int, what: str) -> list[str]:
    """Return a line that tells of rows not shown, if there are any."""
    return [f"... {left} more {what}; --top shows more"] if left > 0 else []
