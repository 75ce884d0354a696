"""Charts as a picture, drawn by matplotlib (extra ``plots``), without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.convert._output import new_file
from tracelens.errors import ConfigError
from tracelens.plots.axes import axis_of
from tracelens.plots.colours import ACCENTS
from tracelens.plots.series import Chart, Curves, HeatMap, Ranking, thinned
from tracelens.texts import duration, printable

if TYPE_CHECKING:
    import os

ENDINGS = (".png", ".svg", ".pdf")

_WIDTH_INCHES = 9.0
_STYLES = ("-", "--", ":", "-.")
_MAX_NAME = 44


def write_picture(
    charts: Sequence[Chart],
    out_path: str | os.PathLike[str],
    *,
    title: str = "",
    force: bool = False,
) -> None:
    """Draw charts, one below the other; one that the trace lacks is a sentence in the picture.

    Args:
        charts: from `charts.charts_of`.
        out_path: the file; its ending chooses the format.
        title: heading of the picture.
        force: replace an existing file.

    Raises:
        ConfigError: matplotlib is missing, the ending is none of ``ENDINGS``, the file exists, or
            there is nothing to draw.
        TraceLensError: the file cannot be written.
    """
    target = Path(out_path)
    if target.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{target}: the name must end with {', '.join(ENDINGS)}")
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "drawing needs matplotlib: pip install 'tracelens-toolkit[plots]' "
            "(tracelens report needs nothing)"
        )
    if all(chart.missing for chart in charts):
        reasons = "; ".join(f"{chart.key}: {chart.missing}" for chart in charts)
        raise ConfigError(f"nothing to draw: {reasons or 'the trace holds no steps and no ops'}")
    figure = _drawn(charts, title)
    with new_file(target, force=force) as temporary:
        metadata = {"Date": None} if target.suffix.lower() == ".svg" else None
        figure.savefig(temporary, format=target.suffix[1:].lower(), metadata=metadata)


def _drawn(charts: Sequence[Chart], title: str) -> Any:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Text stays text, which can be searched and read aloud; the same trace gives the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "tracelens", "svg.fonttype": "none"})
    heights = [_height(chart) for chart in charts]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(_plain(title), fontsize=12, fontweight="bold")
    rows = figure.subplots(len(charts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (axes,), chart in zip(rows, charts, strict=True):
        axes.set_title(_plain(chart.title), fontsize=10, loc="left")
        if isinstance(chart.body, Curves):
            _curves(axes, chart.body)
        elif isinstance(chart.body, HeatMap):
            _heat_map(figure, axes, chart.body)
        elif isinstance(chart.body, Ranking):
            _ranking(axes, chart.body)
        else:
            told = chart.about or f"Not in this trace: {chart.missing}"
            axes.text(0.0, 0.5, _plain(told), fontsize=9, color="0.4", transform=axes.transAxes)
            axes.set_axis_off()
    return figure


def _height(chart: Chart) -> float:
    if isinstance(chart.body, HeatMap):
        return 0.8 + 0.19 * max(len(chart.body.rows), 3)
    if isinstance(chart.body, Ranking):
        return 0.7 + 0.2 * len(chart.body.rows)
    return 1.9 if chart.body is not None else 0.6


def _curves(axes: Any, body: Curves) -> None:
    axis = axis_of([value for curve in body.curves for value in curve.finite()], body.unit)
    axes.set_yscale("log" if axis.log else "linear")
    axes.set_ylim(axis.low, axis.high)
    if axis.base != 1:
        axes.set_yticks(axis.ticks())
    style = "steps-post" if body.stairs else "default"
    for at, curve in enumerate(body.curves):
        thin = thinned(curve, 2000)
        ys = [value if math.isfinite(value) else math.nan for value in thin.values]
        colour = ACCENTS[at % len(ACCENTS)]
        axes.plot(
            thin.xs,
            ys,
            color=colour,
            lw=1.4,
            ls=_STYLES[at],
            label=_plain(curve.name),
            drawstyle=style,
        )
        bad = [x for x, v in zip(thin.xs, thin.values, strict=True) if not math.isfinite(v)]
        if bad:
            height = [axis.high] * len(bad)
            axes.plot(bad, height, "x", color="#b42318", ms=6, clip_on=False, label="not finite")
    axes.yaxis.set_major_formatter(lambda value, _: body.tick(value))
    axes.xaxis.set_major_formatter(lambda value, _: body.x_text(value))
    axes.set_xlabel("time" if body.x_unit else "step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8, frameon=False)


def _heat_map(figure: Any, axes: Any, found: HeatMap) -> None:
    import numpy as np
    from matplotlib.colors import LogNorm

    rows, columns = len(found.rows), found.columns
    last = found.steps_of(columns - 1)[1] + 1
    edges = np.arange(columns + 1) * found.steps_per_column + found.first_step
    values = np.full((rows, columns), np.nan)
    for (row, column), cell in found.cells.items():
        if found.colour and cell.value and not (cell.nans or cell.infs):
            values[row, column] = cell.value
    extent = found.extent()
    seen = np.zeros((rows, columns))
    for row, column in found.cells:
        seen[row, column] = 1
    plain = np.where(seen > 0, 0.0, np.nan)
    ys = np.arange(rows + 1)
    axes.pcolormesh(edges, ys, plain, cmap="Greys", vmin=-1, vmax=9, rasterized=True)
    if found.colour and extent:
        low, high = extent
        scale = LogNorm(low, high if high > low else low * 10)
        mesh = axes.pcolormesh(edges, ys, values, cmap="cividis", norm=scale, rasterized=True)
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12)
        bar.ax.tick_params(labelsize=7)
    marks: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for (row, column), cell in found.cells.items():
        key = _mark(cell.nans, cell.infs, found.colour and cell.value == 0)
        if key is not None:
            middle = (edges[column] + edges[column + 1]) / 2
            marks.setdefault(key, []).append((middle, row + 0.5))
    for (marker, colour, label), places in marks.items():
        across, down = zip(*places, strict=True)
        hollow = {"facecolors": "none"} if marker == "D" else {}
        shade = {"edgecolors": colour} if hollow else {"color": colour}
        axes.scatter(across, down, marker=marker, s=14, lw=1.0, label=label, **hollow, **shade)
    if marks:
        axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    axes.set_ylim(rows, 0)
    axes.set_xlim(found.first_step, last)
    axes.set_yticks(
        np.arange(rows) + 0.5, [_plain(_short(name)) for name in found.rows], fontsize=7
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("step", fontsize=8)


def _mark(nans: int, infs: int, zero: bool) -> tuple[str, str, str] | None:
    if nans:
        return "x", "#b42318", "NaN"
    if infs:
        return "D", "#b42318", "Inf, no NaN"
    return ("_", "#000000", "exactly zero") if zero else None


def _ranking(axes: Any, found: Ranking) -> None:
    names = [_plain(_short(row.name)) for row in found.rows]
    places = range(len(names))
    axes.barh(places, [row.duration_ns for row in found.rows], color=ACCENTS[0], height=0.7)
    largest = max(row.duration_ns for row in found.rows) or 1
    for place, row in zip(places, found.rows, strict=True):
        told = f" {duration(row.duration_ns)} ({100 * row.share:.1f}%)"
        axes.text(row.duration_ns, place, told, va="center", fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    axes.set_xlim(0, largest * 1.25)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


def _plain(name: str) -> str:
    """Return a text of the trace as it stands: ``$`` would begin a formula."""
    return printable(name).replace("$", r"\$")
