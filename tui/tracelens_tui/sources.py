"""Source files that a trace names: read safely, split into lines, coloured by token."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tracelens.storage.reader import TraceReader
from tracelens_tui.health import Health, worst_of
from tracelens_tui.texts import safe

MAX_BYTES = 4 << 20
"""A larger file is not shown: a trace may name any file."""

Piece = tuple[str, str]
"""A stretch of text and its tone: ``keyword``, ``string``, ``comment``, ``number`` or empty."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The lines of a file, or why there are none.

    Attributes:
        lines: pieces of each line, tabs expanded.
        problem: why it cannot be shown; empty if it can.
    """

    lines: tuple[tuple[Piece, ...], ...] = ()
    problem: str = ""


@dataclass(slots=True)
class LineFacts:
    """What the ops of one source line did in one step.

    Attributes:
        n_ops: ops that ran there.
        duration_ns: their time; ``None`` if it was not measured.
        health: the worst of them.
        low: least finite output element.
        high: greatest finite output element.
    """

    n_ops: int
    duration_ns: int | None
    health: Health
    low: float | None
    high: float | None
    code: str = ""


@dataclass(slots=True)
class Annotations:
    """Facts by line of one file in one step."""

    file: str = ""
    step: int = -1
    lines: dict[int, LineFacts] = field(default_factory=dict)


def find(file: str, bases: Sequence[Path]) -> Path | None:
    """Return where a recorded path lies here: as it is, or relative to one of ``bases``."""
    path = Path(file)
    candidates = [path] if path.is_absolute() else [base / path for base in bases]
    for candidate in candidates:
        try:
            if stat.S_ISREG(candidate.stat().st_mode):
                return candidate
        except (OSError, ValueError):
            continue
    return None


def read(file: str, bases: Sequence[Path]) -> SourceFile:
    """Read a source file for display; never raises."""
    path = find(file, bases)
    if path is None:
        return SourceFile(problem=f"{safe(file)} is not on this machine")
    try:
        info = path.stat()
        if info.st_size > MAX_BYTES:
            return SourceFile(problem=f"{safe(file)} is larger than 4 MiB")
        return SourceFile(_lines(os.fspath(path), info.st_mtime_ns, info.st_size))
    except OSError as error:
        return SourceFile(problem=f"{safe(file)} cannot be read: {error.strerror}")


@lru_cache(maxsize=16)
def _lines(path: str, mtime_ns: int, size_bytes: int) -> tuple[tuple[Piece, ...], ...]:
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_BYTES).expandtabs(4)
    if path.endswith((".py", ".pyi")):
        return tuple(_split(_coloured(text)))
    return tuple(((safe(line), ""),) for line in text.splitlines())


def _coloured(text: str) -> Iterator[Piece]:
    from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped]
    from pygments.token import (  # type: ignore[import-untyped]
        Comment,
        Keyword,
        Name,
        Number,
        Operator,
        String,
    )

    tones = (
        (Comment, "comment"),
        (String, "string"),
        (Number, "number"),
        (Keyword, "keyword"),
        (Operator.Word, "keyword"),
        (Name.Decorator, "keyword"),
        (Name.Function, "name"),
        (Name.Class, "name"),
    )
    for token, piece in PythonLexer(stripnl=False).get_tokens(text):
        yield piece, next((tone for kind, tone in tones if token in kind), "")


def _split(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, ...]]:
    line: list[Piece] = []
    for text, tone in pieces:
        first, *rest = text.split("\n")
        line.append((safe(first), tone))
        for part in rest:
            yield tuple(line)
            line = [(safe(part), tone)]
    if any(text for text, _ in line):
        yield tuple(line)


_FACTS = """
    SELECT line, count(*), sum(duration_ns), sum(nan_count), sum(inf_count), min(vmin), max(vmax),
           any_value(code)
    FROM ops WHERE step = {step} AND rank = {rank} AND file = '{file}' AND (flags & 128) = 0
    GROUP BY line LIMIT 20000"""


def annotate(reader: TraceReader, file: str, step: int, rank: int) -> Annotations:
    """Sum up what each line of a file did in a step.

    Raises:
        QueryRefused: the trace's tables cannot be queried.
    """
    quoted = file.replace("'", "''")
    rows = reader.sql(_FACTS.format(step=int(step), rank=int(rank), file=quoted))
    lines = {
        int(line): LineFacts(
            n_ops, spent, worst_of(nan or 0, inf or 0), low, high, safe(code or "")
        )
        for line, n_ops, spent, nan, inf, low, high, code in rows
        if line is not None
    }
    return Annotations(file, step, lines)
