"""The way from a cause to its sink, as a report shows it."""

from __future__ import annotations

from typing import Any

from tracelens.analysis import describe
from tracelens.analysis.names import canonical, display
from tracelens.analysis.rules import Case
from tracelens.analysis.source import OpSource
from tracelens.analysis.state import Bad
from tracelens.analysis.walk import Link
from tracelens.events import Op, Phase, Source

Json = dict[str, Any]

_MAX_PATH = 64


def frame_of(source: OpSource, op: Op) -> Source | None:
    """Return the line to show for an op: its own, else its forward op's, else its parent's."""
    for other in (op.op_id, op.fwd_op_id, op.parent_id):
        found = op if other == op.op_id else source.op(other) if other >= 0 else None
        if found is not None and found.source is not None:
            return found.source
    return None


def made_nan(link: Link) -> Op | None:
    """Return the op on the way that made a NaN of the Inf it read."""
    while link.towards_sink is not None:
        if link.kind is Bad.INF and link.towards_sink.kind is Bad.NAN:
            return link.towards_sink.op
        link = link.towards_sink
    return None


def first_backward(link: Link | None) -> Op | None:
    """Return the first op of the backward pass on the way."""
    while link is not None:
        if link.op.phase is Phase.BACKWARD:
            return link.op
        link = link.towards_sink
    return None


def path_json(source: OpSource, case: Case, link: Link | None) -> list[Json]:
    """Return the ops on the way, cause first, what hid the value after it; the middle left out."""
    path: list[Json] = []
    first = link
    while link is not None:
        note = _note(case, link, first=link is first)
        path.append(describe.op_summary(link.op, frame_of(source, link.op), note))
        if link is first and case.hidden_by is not None and not case.backward:
            name = display(case.hidden_by.name)
            path.append(
                describe.op_summary(
                    case.hidden_by,
                    frame_of(source, case.hidden_by),
                    f"hidden: {name} did not select it"
                    if canonical(case.hidden_by.name) == "where"
                    else f"hidden by {name}",
                )
            )
        link = link.towards_sink
    if len(path) > _MAX_PATH:
        left_out = len(path) - _MAX_PATH
        half = _MAX_PATH // 2
        gap: Json = dict.fromkeys(path[0])
        gap["note"] = f"{left_out} more ops"
        path = [*path[:half], gap, *path[-half:]]
    return path


def _note(case: Case, link: Link, *, first: bool) -> str:
    op = link.op
    if case.nan_op is op and not first:
        return _arithmetic(op)
    out = next((o.stats for o in op.outputs if o.stats is not None and o.stats.nonfinite), None)
    if out is None:
        return ""
    parts = []
    if out.posinf + out.neginf:
        parts.append(f"inf {out.posinf + out.neginf}")
    if out.nan:
        parts.append(f"nan {out.nan}")
    return f"{' '.join(parts)} of {out.numel}"


def _arithmetic(op: Op) -> str:
    """Write how an op makes a NaN of an Inf."""
    name = canonical(op.name)
    if name == "mul":
        return "0 * inf = nan"
    if name == "div":
        return "inf / inf = nan"
    if name in ("add", "sub", "rsub", "sum", "mean", "cumsum", "var", "std", "var_mean"):
        return "inf - inf = nan"
    if "softmax" in name or "norm" in name:
        return "inf - inf = nan inside"
    if name in ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "convolution"):
        return "0 * inf or inf - inf in a sum of products = nan"
    return "turns inf into nan"
