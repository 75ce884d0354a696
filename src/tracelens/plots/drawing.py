"""Charts as HTML: the plot is SVG that stretches, all text is HTML that does not.

A picture so made is as readable at the width of a phone as on a wide screen. Every text of the
trace goes through ``escape``.
"""

from __future__ import annotations

import math
from html import escape

from tracelens.plots.axes import axis_of, nice_ticks
from tracelens.plots.colours import LEVELS, cividis, level_of
from tracelens.plots.series import Cell, Chart, Curve, Curves, HeatMap, Ranking, thinned
from tracelens.plots.tables import table_of
from tracelens.texts import duration, number, printable

_HEIGHT = 200
_MAX_MARKS = 40
_LAST_TICK = 0.88  # beyond it, a tick's text would run into the axis' name
_MARK_PX, _PLOT_PX = 5, 800
_DASHES = ("", "7 4", "2 3", "9 3 2 3")


def text(value: object) -> str:
    """Return a text of a trace for HTML: escaped, control characters shown as such."""
    return escape(printable(str(value)), quote=True)


def figure(chart: Chart, *, with_table: bool = True) -> str:
    """Return a chart as an HTML ``figure``; one that the trace lacks as a sentence.

    Args:
        chart: what to draw.
        with_table: put its numbers beneath, folded.
    """
    title = f"<h3>{text(chart.title)}</h3>"
    body = chart.body
    if body is None:
        told = chart.about or f"Not in this trace: {chart.missing}."
        return f'<figure class="tl-missing">{title}<p>{text(told)}</p></figure>'
    if isinstance(body, Curves):
        drawn = _curves(chart, body)
    elif isinstance(body, HeatMap):
        drawn = _heat_map(chart, body)
    else:
        drawn = _ranking(body)
    caption = f"<figcaption>{text(chart.about)}</figcaption>" if chart.about else ""
    numbers = ""
    if with_table and not isinstance(body, Ranking):
        head, rows = table_of(body)
        numbers = f"<details><summary>As a table</summary>{table(head, rows)}</details>"
    return f"<figure>{title}{caption}{drawn}{numbers}</figure>"


def _curves(chart: Chart, body: Curves) -> str:
    axis = axis_of([value for curve in body.curves for value in curve.finite()], body.unit)
    low = min((curve.xs[0] for curve in body.curves if len(curve.xs)), default=0)
    high = max((curve.xs[-1] for curve in body.curves if len(curve.xs)), default=1)
    width = max(high - low, 1)
    ys = [(100 * (1 - axis.place(tick)), body.tick(tick)) for tick in axis.ticks()]
    most = 3 if body.x_unit else 5
    xs = [
        (100 * (tick - low) / width, body.x_text(tick))
        for tick in nice_ticks(low, high, most)
        if (tick - low) <= _LAST_TICK * width and (body.x_unit or tick == int(tick))
    ]
    grid = "".join(f"M0 {y / 100 * _HEIGHT:.1f}H1000" for y, _ in ys)
    lines, marks, legend = [], [], []
    for at, curve in enumerate(body.curves):
        points = [
            (1000 * (x - low) / width, value) for x, value in zip(*_points(curve), strict=True)
        ]
        placed = [(x, _HEIGHT * (1 - axis.place(v)) if math.isfinite(v) else v) for x, v in points]
        shape = _path(placed, stairs=body.stairs)
        dash = f' stroke-dasharray="{_DASHES[at]}"' if _DASHES[at] else ""
        lines.append(f'<path class="tl-line tl-c{at}" d="{shape}"{dash}/>')
        marks += _marks(points)
        if len(body.curves) > 1:
            key = f'<path class="tl-line tl-c{at}" d="M0 6H30"{dash}/>'
            legend.append(
                f'<span><svg viewBox="0 0 30 12" aria-hidden="true">{key}</svg>'
                f"{text(curve.name)}</span>"
            )
    if marks:
        legend.append('<span><b class="tl-bad">×</b> not finite</span>')
    label = f"{chart.title} by {'time' if body.x_unit else 'step'}. {chart.about}"
    return (
        '<div class="tl-chart"><div class="tl-y">'
        + "".join(f'<span style="top:{y:.1f}%">{text(name)}</span>' for y, name in ys)
        + f'</div><div class="tl-plot">{_svg(label, _HEIGHT)}<path class="tl-grid" d="{grid}"/>'
        + "".join(lines)
        + f"</svg>{''.join(marks)}</div>{_x_axis(xs, 'time' if body.x_unit else 'step')}</div>"
        + (f'<p class="tl-legend">{"".join(legend)}</p>' if legend else "")
    )


def _points(curve: Curve) -> tuple[list[int], list[float]]:
    thin = thinned(curve)
    return list(thin.xs), list(thin.values)


def _path(points: list[tuple[float, float]], *, stairs: bool) -> str:
    """Return a polyline, or stairs, broken where a value is not finite."""
    parts, drawing = [], False
    for at, (x, y) in enumerate(points):
        if not math.isfinite(y):
            drawing = False
            continue
        lonely = not drawing and (at + 1 == len(points) or not math.isfinite(points[at + 1][1]))
        if stairs and drawing:
            parts.append(f"H{x:.1f}V{y:.1f}")
        else:
            parts.append(f"{'L' if drawing else 'M'}{x:.1f} {y:.1f}{'h.1' if lonely else ''}")
        drawing = True
    return "".join(parts)


def _marks(points: list[tuple[float, float]]) -> list[str]:
    bad = [x for x, value in points if not math.isfinite(value)]
    stride = max(1, math.ceil(len(bad) / _MAX_MARKS))
    return [
        f'<b class="tl-bad tl-mark" style="left:{x / 10:.1f}%" aria-hidden="true">×</b>'
        for x in bad[::stride]
    ]


def _heat_map(chart: Chart, found: HeatMap) -> str:
    rows, columns = len(found.rows), found.columns
    extent = found.extent() if found.colour else None
    # The plot stretches and its marks with it: in few columns they would be far too wide.
    half = min(0.3, _MARK_PX * columns / _PLOT_PX)
    paths: dict[str, list[str]] = {}
    for (row, column), cell in sorted(found.cells.items()):
        # What is not finite has no place on the scale, so that its mark stands on plain ground.
        if extent and cell.value and not (cell.nans or cell.infs):
            shade = f'fill="{cividis(level_of(cell.value, *extent) / (LEVELS - 1))}"'
        else:
            shade = 'class="tl-cell"'
        paths.setdefault(shade, []).append(f"M{column} {row}h1v1h-1z")
        mark = _glyph(cell, found.colour, half)
        if mark:
            paths.setdefault(mark[0], []).append(mark[1].format(x=column, y=row))
    ordered = sorted(paths.items(), key=lambda item: "tl-glyph" in item[0])
    drawn = "".join(f'<path {shade} d="{"".join(shapes)}"/>' for shade, shapes in ordered)
    low, high = found.first_step, found.steps_of(columns - 1)[1]
    xs = [
        (100 * (tick - low) / (high + 1 - low), f"{tick:.0f}")
        for tick in nice_ticks(low, high)
        if tick == int(tick) and (tick - low) <= _LAST_TICK * (high + 1 - low)
    ]
    names = "".join(f'<span title="{text(name)}">{text(name)}</span>' for name in found.rows)
    label = f"{chart.title}: modules from top to bottom by step. {chart.about}"
    return (
        f'<div class="tl-chart tl-map" style="--rows:{rows}"><div class="tl-rows">{names}</div>'
        f'<div class="tl-plot">{_svg(label, rows, columns)}{drawn}</svg></div>'
        f"{_x_axis(xs, 'step')}</div>{_map_legend(found, extent)}"
    )


def _glyph(cell: Cell, colour: bool, half: float) -> tuple[str, str] | None:
    """Return the class and the shape of the mark in a cell: state is told by shape, not colour.

    Args:
        cell: what was measured.
        colour: whether the map shows values.
        half: half the mark's width, in columns.
    """
    left, wide, width = f"{0.5 - half:.3g}", f"{half:.3g}", f"{2 * half:.3g}"
    if cell.nans:
        cross = f"M{{x}} {{y}}m{left} .25l{width} .5m-{width} 0l{width} -.5"
        return 'class="tl-glyph tl-nan"', cross
    if cell.infs:
        diamond = f"M{{x}} {{y}}m.5 .2l{wide} .3l-{wide} .3l-{wide} -.3z"
        return 'class="tl-glyph tl-inf"', diamond
    if colour and cell.value == 0:
        return 'class="tl-glyph tl-zero"', f"M{{x}} {{y}}m{left} .5h{width}"
    return None


def _map_legend(found: HeatMap, extent: tuple[float, float] | None) -> str:
    parts = []
    if extent:
        stops = ",".join(cividis(at / 8) for at in range(9))
        parts.append(
            f'<span>{number(extent[0])} <i class="tl-scale" '
            f'style="background:linear-gradient(90deg,{stops})"></i> {number(extent[1])} '
            "(logarithmic)</span>"
        )
    cells = found.cells.values()
    if any(cell.nans for cell in cells):
        parts.append('<span><b class="tl-bad">×</b> NaN</span>')
    if any(cell.infs and not cell.nans for cell in cells):
        parts.append('<span><b class="tl-bad">◇</b> Inf, no NaN</span>')
    if found.colour and any(c.value == 0 and not (c.nans or c.infs) for c in cells):
        parts.append("<span><b>–</b> exactly zero</span>")
    if not parts:
        parts.append("<span>plain: looked at, and finite</span>")
    return f'<p class="tl-legend">{"".join(parts)}</p>'


def _ranking(found: Ranking) -> str:
    largest = max((row.share for row in found.rows), default=0.0) or 1.0
    rows = "".join(
        f'<tr><th scope="row" title="{text(row.name)}"><span>{text(row.name)}</span>'
        f'<i class="tl-bar" style="width:{100 * row.share / largest:.1f}%"></i></th>'
        f"<td>{text(duration(row.duration_ns))}</td><td>{100 * row.share:.1f}%</td>"
        f"<td>{row.count:,}</td></tr>"
        for row in found.rows
    )
    return (
        f'<table class="tl-ranking"><thead><tr><th scope="col">{text(found.what)}</th>'
        '<th scope="col">time</th><th scope="col">share</th><th scope="col">count</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table as HTML, which scrolls where it is too wide.

    Args:
        head: names of the columns.
        rows: their cells; the first names its row.
    """
    columns = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="tl-scroll"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _svg(label: str, height: float, width: float = 1000) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(label)}">'
    )


def _x_axis(xs: list[tuple[float, str]], name: str) -> str:
    ticks = "".join(f'<span style="left:{x:.1f}%">{text(told)}</span>' for x, told in xs)
    return f'<div class="tl-x">{ticks}<em>{name}</em></div>'
