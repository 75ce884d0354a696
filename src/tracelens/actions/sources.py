"""Source lines with the ops that they issued."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens.events import Op, Source
from tracelens.optext import short_path, stats_text
from tracelens.predicates import And, Number, Text
from tracelens.texts import printable

if TYPE_CHECKING:
    from tracelens.cursor import Cursor

_MAX_BYTES = 4 << 20
_MAX_OPS = 400
_SHOWN_OPS = 3


def annotated(cursor: Cursor, frame: Source, around: int) -> list[str]:
    """Return the lines around a source line, each with the ops it issued in this training step.

    The file is read as it is now: a line that differs from what was recorded is told. Where the
    file is missing, the lines known from the trace are shown.
    """
    known = read_lines(frame.file)
    low, high = max(1, frame.line - around), frame.line + around
    ops = _ops_of_lines(cursor, frame.file, low, high)
    head = short_path(frame.file)
    notes = []
    if not known:
        known = {op.source.line: op.source.code for of in ops.values() for op in of if op.source}
        known[frame.line] = frame.code
        notes.append("the file is not here: the lines are those the trace recorded")
    elif frame.code and known.get(frame.line, "").strip() != frame.code:
        notes.append(f"the file has changed since: line {frame.line} was {frame.code!r}")
    lines = [head, *notes]
    for number in range(low, high + 1):
        if number in known:
            sign = "->" if number == frame.line else "  "
            lines.append(f"{sign} {number:5}  {known[number].rstrip()}".rstrip())
            lines += [f"            # {text}" for text in _told(ops.get(number, []))]
    return [printable(line.replace("\t", "    ")) for line in lines]


def read_lines(file: str) -> dict[int, str]:
    """Return a source file's lines by number, none if it cannot be read.

    The path comes from the trace: only plain files of a sensible size are opened.
    """
    try:
        found = Path(file).stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            return {}
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return {}
    return dict(enumerate(text.splitlines(), 1))


def _ops_of_lines(cursor: Cursor, file: str, low: int, high: int) -> dict[int, list[Op]]:
    """Return this training step's ops of some lines of a file, by line."""
    if cursor.op is None:
        return {}
    step = float(cursor.op.step)
    condition = And(
        (
            Number("step", "=", step),
            Number("line", ">=", low),
            Number("line", "<=", high),
            Text("file", re.compile(f"(?s){re.escape(file)}")),
        )
    )
    found = cursor.reader.find(
        condition,
        rank=cursor.rank,
        first_step=cursor.op.step,
        last_step=cursor.op.step,
        limit=_MAX_OPS,
    )
    by_line: dict[int, list[Op]] = {}
    for op_id in found.op_ids:
        op = cursor.reader.op(op_id, cursor.rank)
        if op is not None and op.source is not None:
            by_line.setdefault(op.source.line, []).append(op)
    return by_line


def _told(ops: list[Op]) -> list[str]:
    """Return a line's ops in a few words, bad ones first."""
    ordered = sorted(ops, key=lambda op: (not op.flags & 1, op.op_id))
    lines = []
    for op in ordered[:_SHOWN_OPS]:
        stats = stats_text(op.outputs[0].stats) if op.outputs else ""
        sign = "!" if op.flags & 1 else " "
        lines.append(f"{sign} {op.op_id}  {op.name}  {op.phase.label}  {stats}".rstrip())
    if len(ops) > _SHOWN_OPS:
        lines.append(f"  and {len(ops) - _SHOWN_OPS} more ops")
    return lines
