"""The name of a trace that was given none."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tracelens.config import DIRECTORY
from tracelens.processes import launched, place

_SUFFIX = ".tltrace"


def default_path(name: str | None = None) -> Path:
    """Return a path that does not exist yet, named after the program and the time.

    Ranks that one launcher started on a machine are given the same path.

    Args:
        name: the program's name; the running script's by default.
    """
    directory = Path(os.environ.get(DIRECTORY) or ".")
    script = name or Path(getattr(sys.modules["__main__"], "__file__", None) or "session").stem
    if place().world_size > 1:
        return directory / ("-".join(filter(None, (script, *launched()))) + _SUFFIX)
    stem = f"{script}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = directory / (stem + _SUFFIX)
    number = 2
    while path.exists():
        path = directory / f"{stem}-{number}{_SUFFIX}"
        number += 1
    return path
