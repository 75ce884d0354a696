"""How verbs write data to stdout: JSON objects and aligned text tables."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from tracelens.texts import duration, size, table

__all__ = ["duration", "print_json", "print_text", "size", "table", "wants_color"]


def print_json(value: Any) -> None:
    """Print one JSON document; a NaN or Inf becomes the string Python prints for it."""
    json.dump(_strict(value), sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_text(text: str) -> None:
    """Print a text, escaping what stdout's encoding cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


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
