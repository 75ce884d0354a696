"""The scalars that a step carries, as they stand in the column ``scalars`` of ``steps``."""

from __future__ import annotations

import json


def scalars_of(text: str | None) -> list[tuple[str, float]]:
    """Return the scalars in a step's JSON, where NaN and Inf are words; others are left out.

    Examples:
        >>> scalars_of('{"loss": 0.5, "note": [1], "norm": "NaN"}')
        [('loss', 0.5), ('norm', nan)]
    """
    try:
        told = json.loads(text or "{}")
    except ValueError:
        return []
    found = []
    for name, value in told.items() if isinstance(told, dict) else ():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                found.append((str(name), float(value)))
            except (ValueError, OverflowError):
                continue
    return found
