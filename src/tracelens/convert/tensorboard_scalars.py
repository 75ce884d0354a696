"""A trace's scalars for TensorBoard: what steps carry, and statistics of modules over steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tracelens.events import OpFlag
from tracelens.scalars import scalars_of

if TYPE_CHECKING:
    from tracelens.convert.tensorboard import Run

MAX_STEPS = 1000
"""Steps whose module statistics are written; TensorBoard itself draws no more points of a curve."""

_MAX_MODULES = 256
_PASSING = int(OpFlag.COMPOSITE | OpFlag.VIEW)
_KINDS = {"forward": "activations", "backward": "gradients"}

_SOURCE = f"""
    ops WHERE {{where}} AND module IS NOT NULL AND numel IS NOT NULL AND step >= 0
    AND phase IN ('forward', 'backward') AND (flags & {_PASSING}) = 0"""
_FINITE = "(numel - coalesce(nan_count, 0) - coalesce(inf_count, 0))"
# Of several outputs the moments are pooled: E[x^2] = std^2 + mean^2 of each, weighted by its size.
_MODULES = f"""
    SELECT o.step, o.phase, o.module, min(o.start_ns), min(vmin), max(vmax),
           sum(mean::DOUBLE * {_FINITE})
               / nullif(sum({_FINITE}) FILTER (WHERE mean IS NOT NULL), 0),
           sum((std::DOUBLE * std + mean::DOUBLE * mean) * {_FINITE})
               / nullif(sum({_FINITE}) FILTER (WHERE mean IS NOT NULL AND std IS NOT NULL), 0),
           sqrt(sum(l2::DOUBLE * l2)),
           sum(coalesce(nan_count, 0) + coalesce(inf_count, 0))::BIGINT
    FROM (SELECT * FROM {_SOURCE} AND (step - {{lo}}) % {{width}} = 0) AS o
    JOIN (SELECT module FROM {_SOURCE} GROUP BY module ORDER BY min(op_id) LIMIT {_MAX_MODULES})
        AS chosen USING (module)
    GROUP BY o.step, o.phase, o.module ORDER BY o.step"""


def write(run: Run) -> None:
    """Write the scalars of every step, and of modules those of up to ``MAX_STEPS`` steps."""
    columns = ("rank", "step", "start_ns", "duration_ns", "n_ops", "hits", "scalars")
    for block in run.reader.scan("steps", columns, run.first_step, run.last_step):
        for rank, step, start_ns, duration_ns, n_ops, hits, text in block:
            if rank != run.rank or step < 0 or not run.wants(step):
                continue
            end_s = run.wall_time_s((start_ns or 0) + (duration_ns or 0))
            run.events.scalars(end_s, step, _of_step(duration_ns, n_ops, hits, text))
    where = run.where()
    low, high = run.reader.sql(f"SELECT min(step), max(step) FROM {_SOURCE.format(where=where)}")[0]
    if low is None:
        return
    width = (high - low) // MAX_STEPS + 1
    rows = run.reader.sql(_MODULES.format(where=where, lo=low, width=width))
    for step, phase, module, start_ns, *numbers in rows:
        prefix = f"{_KINDS[phase]}/{module}"
        run.events.scalars(run.wall_time_s(start_ns), step, _of_module(prefix, *numbers))


def _of_step(
    duration_ns: int | None, n_ops: int | None, hits: int | None, text: str | None
) -> list[tuple[str, float]]:
    found = scalars_of(text)
    if duration_ns is not None:
        found.append(("tracelens/step_time_ms", duration_ns / 1e6))
    if n_ops is not None:
        found.append(("tracelens/ops", float(n_ops)))
    if hits is not None:
        found.append(("tracelens/nonfinite_ops", float(hits)))
    return found


def _of_module(
    prefix: str,
    vmin: Any,
    vmax: Any,
    mean: Any,
    square: Any,
    l2: Any,
    bad: int,
) -> list[tuple[str, float]]:
    found = [
        (f"{prefix}/{name}", float(value))
        for name, value in (("min", vmin), ("max", vmax), ("mean", mean), ("l2", l2))
        if value is not None and math.isfinite(value)
    ]
    if mean is not None and square is not None and math.isfinite(square):
        found.append((f"{prefix}/std", math.sqrt(max(square - mean * mean, 0.0))))
    return [*found, (f"{prefix}/nonfinite", float(bad))]
