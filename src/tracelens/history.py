"""Where the prompt keeps the lines typed."""

from __future__ import annotations

import os
from pathlib import Path


def history_file() -> Path | None:
    """Return the file of typed lines, its directory made; ``None`` where it cannot be made.

    It lies in ``$XDG_STATE_HOME/tracelens``, by default ``~/.local/state/tracelens``.
    """
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        directory = Path(base).expanduser() / "tracelens"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return directory / "history"
