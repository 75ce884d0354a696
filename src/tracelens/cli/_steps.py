"""The option ``--steps A:B``."""

from __future__ import annotations

from tracelens.errors import ConfigError


def step_range(text: str | None) -> tuple[int | None, int | None]:
    """Return the first step and the one after the last; ``None`` where open.

    Raises:
        ConfigError: it is not ``A:B`` with A < B.

    Examples:
        >>> step_range("2:5"), step_range("2:"), step_range(None)
        ((2, 5), (2, None), (None, None))
    """
    if text is None:
        return None, None
    first, colon, end = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, end)):
        raise ConfigError(f"--steps takes FIRST:END, two step numbers, not {text!r}")
    start, stop = int(first) if first else None, int(end) if end else None
    if stop is not None and stop <= (start or 0):
        raise ConfigError(f"--steps {text} holds no step; END is not included")
    return start, stop
