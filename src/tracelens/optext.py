"""Ops and tensors as lines of text: the position line, tables of tensors, statistics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens.analysis import describe
from tracelens.analysis.dtypes import limits
from tracelens.events import Op, OpFlag, Source, Stats, TensorRecord
from tracelens.texts import duration, number, printable

if TYPE_CHECKING:
    from tracelens.cursor import Cursor, Stop

_REASONS = {
    "breakpoint": "breakpoint",
    "watch": "watch",
    "finding": "finding",
    "start": "start of the trace",
    "end": "end of the trace",
    "cancelled": "cancelled",
    "missing": "not found",
}
_NEAR_LIMIT = 0.5
"""Part of the largest number of a dtype above which an extreme is told as close to it."""


def stop_lines(cursor: Cursor, stop: Stop) -> list[str]:
    """Return what to say after a move: why it ended there, and the position."""
    lines = []
    if stop.breakpoint is not None:
        kind = "watch" if stop.breakpoint.watch else "breakpoint"
        lines.append(f"{kind} {stop.breakpoint.number}: {stop.breakpoint.filter}")
    elif stop.reason in _REASONS and (stop.note or stop.reason != "finding"):
        lines.append(stop.note or _REASONS[stop.reason])
    if stop.reason in ("missing", "cancelled"):
        return [printable(line) for line in lines]
    if stop.op is not None and stop.reason == "finding":
        lines += [
            f"finding: {each.get('message', '')}" for each in cursor.findings.at(stop.op.op_id)
        ]
    return [printable(line) for line in lines] + position_lines(cursor)


def position_lines(cursor: Cursor) -> list[str]:
    """Return where a cursor is: the op in one line, its source line in another."""
    op = cursor.op
    if op is None:
        return ["the trace holds no op"]
    lines = [f"{cursor.index + 1:,}/{cursor.count:,}  {op_line(op)}"]
    frame = source_of(cursor, op)
    if frame is not None and frame.code:
        lines.append(printable(f"  -> {frame.code}"))
    return lines


def op_line(op: Op) -> str:
    """Return an op in one line: id, step, phase, module, op, source, first output, time."""
    parts = [f"op {op.op_id}", f"step {op.step}", op.phase.label]
    if op.module:
        parts.append(op.module)
    parts.append(op.name)
    if op.source is not None:
        parts.append(place(op.source))
    if op.outputs:
        parts.append(tensor_text(op.outputs[0]))
    if op.duration_ns is not None:
        parts.append(duration(op.duration_ns))
    return printable("  ".join(part for part in parts if part))


def source_of(cursor: Cursor, op: Op) -> Source | None:
    """Return the line to show for an op: its own, else its forward op's, else its parent's."""
    from tracelens.analysis.path import frame_of
    from tracelens.diagnosis import RankOps

    return frame_of(RankOps(cursor.reader, cursor.rank), op)


def place(source: Source) -> str:
    """Return ``file:line`` with the file relative to the working directory if it is below it."""
    return f"{short_path(source.file)}:{source.line}"


def short_path(file: str) -> str:
    """Return a path relative to the working directory where that is shorter."""
    try:
        relative = os.path.relpath(file) if Path(file).is_absolute() else file
    except (ValueError, OSError):
        return file
    return relative if len(relative) < len(file) else file


def glyph(op: Op) -> str:
    """Return a sign of an op's health: ``!`` a non-finite output, ``?`` unchecked, else a dot."""
    if op.flags & OpFlag.HIT:
        return "!"
    measured = bool(op.outputs) and op.outputs[0].stats is not None
    return "." if measured or op.flags & (OpFlag.CHECKED | OpFlag.VIEW) else "?"


def tensor_text(tensor: TensorRecord) -> str:
    """Return dtype, shape and what is remarkable in the statistics of a tensor."""
    head = tensor.dtype or ("" if tensor.shape is None else "tensor")
    if tensor.shape is not None:
        head += "[" + ", ".join(map(str, tensor.shape)) + "]"
    return "  ".join(part for part in (head, stats_text(tensor.stats, tensor.dtype)) if part)


def stats_text(stats: Stats | None, dtype: str = "") -> str:
    """Return statistics in a few words; empty if the tensor was not measured."""
    if stats is None:
        return ""
    parts = []
    for word, count in (("nan", stats.nan), ("+inf", stats.posinf), ("-inf", stats.neginf)):
        if count:
            parts.append(f"{count} {word}")
    if parts:
        parts[-1] += f" of {stats.numel}"
    if stats.vmin is not None and stats.vmax is not None:
        parts.append(f"{number(stats.vmin)} .. {number(stats.vmax)}")
        limit = limits(dtype)
        largest = max(abs(stats.vmin), abs(stats.vmax))
        if limit is not None and largest > _NEAR_LIMIT * limit.largest:
            parts.append(f"near the limit of {dtype} ({number(limit.largest)})")
    return "  ".join(parts)


def stats_lines(tensor: TensorRecord) -> list[str]:
    """Return all statistics of a tensor, one a line."""
    stats = tensor.stats
    if stats is None:
        return ["not measured"]
    sampled = " (of a sample)" if stats.sampled else ""
    lines = [f"elements  {stats.numel:,}{sampled}"]
    for word, count in (
        ("nan", stats.nan),
        ("+inf", stats.posinf),
        ("-inf", stats.neginf),
        ("zero", stats.zero),
    ):
        if count is not None:
            share = f"  {100 * count / stats.numel:.3g} %" if stats.numel and count else ""
            lines.append(f"{word:8}  {count:,}{share}")
    for word, value in (
        ("min", stats.vmin),
        ("max", stats.vmax),
        ("mean", stats.mean),
        ("std", stats.std),
        ("l2", stats.l2),
    ):
        if value is not None:
            lines.append(f"{word:8}  {number(value)}")
    if tensor.first_bad and tensor.shape is not None:
        places = [str(describe.unravel(flat, tensor.shape)) for flat in tensor.first_bad]
        lines.append(f"first non-finite at {', '.join(places)}")
    return lines
