"""What a recording says on stderr when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracelens.judge import one_line

_TOLD_FAILURES = 3


def last_words(
    findings: Sequence[dict[str, Any]],
    failed: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    is_news: bool,
    always: bool,
) -> list[str]:
    """Return the lines to say: what was found, and how to see it.

    Args:
        findings: what was found.
        failed: notes on hooks that failed.
        path: the trace.
        is_news: no warning or exception has told the findings yet.
        always: say where the trace is even if there is nothing to tell.
    """
    errors = [finding for finding in findings if finding.get("severity") == "error"]
    lines = []
    if errors and is_news:
        lines.append(one_line(errors[0]))
    if errors and (is_news or always):
        lines.append(f"for the first cause: tracelens why {path}")
    elif always and not errors:
        lines.append(f"nothing non-finite found; trace in {path}")
    if always:
        lines += [f"not everything was observed: {n['message']}" for n in failed[:_TOLD_FAILURES]]
    return lines
