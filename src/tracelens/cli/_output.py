"""How verbs write data to stdout: JSON objects and aligned text tables."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from typing import Any

from tracelens.texts import duration, printable, size, table

__all__ = ["duration", "print_json", "print_text", "size", "table", "wants_color"]


_INVISIBLE = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""What JSON need not escape, and a terminal obeys or hides: C1 codes, marks of direction."""


def print_json(value: Any) -> None:
    """Print one JSON document; a NaN or Inf becomes the string Python prints for it."""
    text = json.dumps(_strict(value), indent=2, ensure_ascii=False, default=str)
    sys.stdout.write(_INVISIBLE.sub(_escaped, text) + "\n")
    sys.stdout.flush()


def print_text(text: str, *, styled: bool = False) -> None:
    """Print a text, escaping what a terminal would obey and what stdout's encoding cannot show.

    Args:
        text: lines; texts of a trace in it need no care.
        styled: the text has colours of ours, and texts of a trace in it are escaped already.
    """
    if not styled:
        text = "\n".join(map(printable, text.split("\n")))
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def wants_color() -> bool:
    """Whether stdout is to be coloured: a terminal, unless ``NO_COLOR`` or ``FORCE_COLOR`` say."""
    if os.environ.get("NO_COLOR"):
        return False
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
