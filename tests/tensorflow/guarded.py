"""Records a few lines of a test at guard level and tells what was found where."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tracelens as tl
from tracelens.storage.reader import open_trace


@contextmanager
def guard(path: Path, **settings: Any) -> Iterator[Any]:
    """Record a block; the session is at hand in it and after it."""
    with tl.trace(str(path / "run.tltrace"), quiet=True, **settings) as session:
        yield session


def errors(session: Any) -> list[dict[str, Any]]:
    return [finding for finding in session.findings if finding["severity"] == "error"]


def code_of(finding: dict[str, Any]) -> str:
    """Return the text of the line that a finding blames."""
    return ((finding.get("first_cause") or {}).get("source") or {}).get("code", "")


def notes(session: Any, kind: str = "") -> list[str]:
    events = open_trace(session.path).events("note")
    return [e["message"] for e in events if kind in ("", e["kind"])]


def steps(session: Any) -> list[dict[str, Any]]:
    return list(open_trace(session.path).events("step"))


def line_of(function: Any, text: str) -> int:
    """Return the number of the line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return next(first + at for at, line in enumerate(lines) if text in line)
