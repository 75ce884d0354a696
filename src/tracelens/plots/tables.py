"""The numbers of a chart as a table, of bounded length."""

from __future__ import annotations

from bisect import bisect_left

from tracelens.plots.series import Curves, HeatMap, Ranking, thinned
from tracelens.texts import duration, number

_CURVE_BUCKETS = 12
_MAX_LINES = 60


def table_of(body: Curves | HeatMap | Ranking) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a chart's table.

    Of a long curve the extremes of each stretch stand in the table; of a map each module's first
    and last value, its extremes, and the steps in which it was not finite.
    """
    if isinstance(body, Curves):
        return _of_curves(body)
    if isinstance(body, HeatMap):
        return _of_map(body)
    head = [body.what, "time", "share", "count"]
    return head, [
        [row.name, duration(row.duration_ns), f"{100 * row.share:.1f}%", f"{row.count}"]
        for row in body.rows
    ]


def _of_curves(body: Curves) -> tuple[list[str], list[list[str]]]:
    xs: set[int] = set()
    for curve in body.curves:
        short = len(curve.xs) <= _MAX_LINES
        xs.update(curve.xs if short else thinned(curve, _CURVE_BUCKETS).xs)
    rows = []
    for x in sorted(xs)[: 2 * _MAX_LINES]:
        row = [body.x_text(x)]
        for curve in body.curves:
            at = bisect_left(curve.xs, x)
            known = at < len(curve.xs) and curve.xs[at] == x
            row.append(body.text(curve.values[at]) if known else "-")
        rows.append(row)
    return ["time" if body.x_unit else "step", *(curve.name for curve in body.curves)], rows


def _of_map(body: HeatMap) -> tuple[list[str], list[list[str]]]:
    rows = []
    for at, name in enumerate(body.rows):
        mine = sorted((column, cell) for (row, column), cell in body.cells.items() if row == at)
        bad = [(column, cell) for column, cell in mine if cell.nans or cell.infs]
        first_bad = f"{body.steps_of(bad[0][0])[0]}" if bad else "-"
        counts = [f"{sum(c.nans for _, c in bad)}", f"{sum(c.infs for _, c in bad)}"]
        row = [name]
        if body.colour:
            values = [cell.value for _, cell in mine if cell.value is not None]
            ends = (values[0], values[-1], min(values), max(values)) if values else ()
            row += [number(value) for value in ends] or ["-"] * 4
        rows.append([*row, *counts, f"{len(bad)}", first_bad])
    numbers = ["first", "last", "least", "greatest"] if body.colour else []
    return ["module", *numbers, "NaN", "Inf", "columns with any", "first in step"], rows
