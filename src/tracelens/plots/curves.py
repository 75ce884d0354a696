"""Curves over steps: the scalars of a run, its step times, its memory."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tracelens.plots.series import Chart, Curve, Curves
from tracelens.scalars import scalars_of

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

MAX_CURVES = 4
_MAX_SCALARS = 64
_MEMORY_BUCKETS = 400

STEP_TIME = "step time"


def of_steps(reader: TraceReader, rank: int) -> dict[str, Curve]:
    """Return every scalar of a rank's steps by name, and ``STEP_TIME`` in nanoseconds.

    The steps are read in blocks, and a number takes 16 bytes: a million steps are no matter.
    """
    xs: dict[str, array[int]] = {}
    ys: dict[str, array[float]] = {}
    columns = ("rank", "step", "duration_ns", "scalars")
    for block in reader.scan("steps", columns, None, None):
        for of_rank, step, duration_ns, text in block:
            if of_rank != rank or step < 0:
                continue
            found = [(STEP_TIME, float(duration_ns))] if duration_ns is not None else []
            for name, value in (*found, *scalars_of(text)):
                if name not in xs:
                    if len(xs) > _MAX_SCALARS and not ("loss" in name or "norm" in name):
                        continue
                    xs[name], ys[name] = array("q"), array("d")
                xs[name].append(step)
                ys[name].append(value)
    return {name: _in_order(name, xs[name], ys[name]) for name in xs}


def scalar_charts(found: dict[str, Curve]) -> list[Chart]:
    """Return the charts of losses, of norms, and of each other scalar."""
    names = sorted(name for name in found if name != STEP_TIME)
    losses = [name for name in names if "loss" in name.lower()]
    norms = [name for name in names if "norm" in name.lower() and name not in losses]
    rest = [name for name in names if name not in losses and name not in norms]
    charts = [
        _chart(
            "loss",
            "Loss",
            found,
            losses,
            "no step carries a loss: session.step(loss=loss) keeps it",
        ),
        _chart(
            "grad_norm",
            "Gradient norm",
            found,
            norms,
            "no step carries a norm: session.step(grad_norm=norm) keeps it",
        ),
    ]
    if not rest:
        charts.append(Chart("scalars", "Other scalars", missing="no step carries another scalar"))
    charts += [_chart("scalars", name, found, [name], "") for name in rest[: 2 * MAX_CURVES]]
    return charts


def step_time_chart(found: dict[str, Curve]) -> Chart:
    """Return the chart of step times."""
    curve = found.get(STEP_TIME)
    if curve is None or not curve.xs:
        missing = "no step has a duration: tl.step() or an optimizer step ends one"
        return Chart("step_time", "Step time", missing=missing)
    ordered = sorted(curve.values)
    body = Curves((curve,), unit="ns")
    median = body.text(ordered[len(ordered) // 2])
    slowest = max(range(len(curve.xs)), key=curve.values.__getitem__)
    about = (
        f"Median {median}, slowest {body.text(curve.values[slowest])} (step {curve.xs[slowest]})."
    )
    return Chart("step_time", "Step time", about, body)


def memory_chart(reader: TraceReader, rank: int) -> Chart:
    """Return the memory of each device over time; of a stretch of time the most is kept."""
    rows = reader.sql(
        f"""
        WITH m AS (SELECT device, t_ns, allocated_bytes AS b FROM memory
                   WHERE rank = {int(rank)} AND allocated_bytes IS NOT NULL),
             r AS (SELECT min(t_ns) AS lo, max(t_ns) - min(t_ns) + 1 AS n FROM m)
        SELECT device, arg_max(t_ns, b), max(b) FROM m, r
        GROUP BY device, ((t_ns - lo) * {_MEMORY_BUCKETS}::HUGEINT) // n
        ORDER BY device, 2"""
    )
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for device, t_ns, allocated in rows:
        xs, ys = curves.setdefault(str(device), ([], []))
        xs.append(int(t_ns))
        ys.append(float(allocated))
    if not curves:
        missing = "the trace holds no allocations: a profile recorded with memory has them"
        return Chart("memory", "Memory", missing=missing)
    largest = sorted(curves, key=lambda device: -max(curves[device][1]))[:MAX_CURVES]
    body = Curves(
        tuple(Curve(device, *curves[device]) for device in largest),
        unit="bytes",
        x_unit="ns",
        stairs=True,
    )
    peaks = ", ".join(f"{device} {body.text(max(curves[device][1]))}" for device in largest)
    drawn = "" if len(largest) == len(curves) else f" {len(largest)} of {len(curves)} devices."
    return Chart("memory", "Memory", f"Allocated over time.{drawn} Peak: {peaks}.", body)


def _chart(key: str, title: str, found: dict[str, Curve], names: list[str], missing: str) -> Chart:
    if not names:
        return Chart(key, title, missing=missing)
    body = Curves(tuple(found[name] for name in names[:MAX_CURVES]))
    told = [_told(curve, body) for curve in body.curves]
    if len(names) > MAX_CURVES:
        told.append(f"{len(names) - MAX_CURVES} more are not drawn.")
    return Chart(key, title, " ".join(told), body)


def _told(curve: Curve, body: Curves) -> str:
    bad = [x for x, value in zip(curve.xs, curve.values, strict=True) if not math.isfinite(value)]
    finite = curve.finite()
    ends = f"{body.text(finite[0])} to {body.text(finite[-1])}" if finite else "never finite"
    told = f"{curve.name}: {ends}"
    if not bad:
        return f"{told}."
    where = f"in step {bad[0]}" if len(bad) == 1 else f"in {len(bad)} steps, first in step {bad[0]}"
    return f"{told}; not finite {where}."


def _in_order(name: str, xs: array[int], ys: array[float]) -> Curve:
    if all(a <= b for a, b in pairwise(xs)):
        return Curve(name, xs, ys)
    order = sorted(range(len(xs)), key=xs.__getitem__)
    return Curve(name, [xs[i] for i in order], [ys[i] for i in order])


def number_or_none(value: Any) -> float | None:
    """Return a database value as a float; ``None`` and NaN are not known."""
    return None if value is None or math.isnan(value) else float(value)
