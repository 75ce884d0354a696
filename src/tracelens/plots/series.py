"""What a chart shows: curves over steps, maps of modules by steps, rankings by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracelens.texts import duration, number, size

UNITS: dict[str, Callable[[float], str]] = {"ns": duration, "bytes": size, "": number}
"""How a value of each unit is written."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity over steps.

    Attributes:
        name: what it is.
        xs: step numbers (or ns since the trace's epoch), ascending.
        values: as many; NaN or Inf where the quantity was.
    """

    name: str
    xs: Sequence[int]
    values: Sequence[float]

    def finite(self) -> list[float]:
        """Return the finite values."""
        return [value for value in self.values if math.isfinite(value)]


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves that share their axes.

    Attributes:
        curves: at least one.
        unit: of the values: ``"ns"``, ``"bytes"`` or empty.
        x_unit: ``"ns"``, or empty for steps.
        stairs: a value holds until the next one.
    """

    curves: tuple[Curve, ...]
    unit: str = ""
    x_unit: str = ""
    stairs: bool = False

    def text(self, value: float) -> str:
        """Return a value as text."""
        return UNITS[self.unit](value) if math.isfinite(value) else number(value)

    def tick(self, value: float) -> str:
        """Return a value on the vertical axis as text: ticks are round."""
        return self.text(value).replace(".00 ", " ")

    def x_text(self, x: float) -> str:
        """Return a position on the horizontal axis as text."""
        return UNITS[self.x_unit](x).replace(".00 ", " ") if self.x_unit else f"{x:.0f}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One module in one column of steps.

    Attributes:
        value: the quantity; ``None`` if no finite value was measured.
        nans: NaN elements.
        infs: Inf elements.
    """

    value: float | None
    nans: int = 0
    infs: int = 0


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A quantity by module (rows, in the model's order) and step (columns).

    Attributes:
        rows: module paths.
        first_step: first step of column 0.
        steps_per_column: how many steps a column stands for.
        columns: number of columns.
        cells: (row, column) -> what was measured; absent where nothing was.
        rows_left_out: modules that are not shown.
        colour: whether ``value`` is shown as colour, on a logarithmic scale.
    """

    rows: tuple[str, ...]
    first_step: int
    steps_per_column: int
    columns: int
    cells: dict[tuple[int, int], Cell]
    rows_left_out: int = 0
    colour: bool = True

    def extent(self) -> tuple[float, float] | None:
        """Return the least and greatest value above zero, ``None`` if there is none."""
        found = [c.value for c in self.cells.values() if c.value is not None and c.value > 0]
        return (min(found), max(found)) if found else None

    def steps_of(self, column: int) -> tuple[int, int]:
        """Return the first and last step of a column."""
        first = self.first_step + column * self.steps_per_column
        return first, first + self.steps_per_column - 1


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a ranking: a name, how often, how long, and its share of the whole."""

    name: str
    count: int
    duration_ns: int
    share: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """What took most time, most first."""

    rows: tuple[Row, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, or the reason why the trace has none.

    Attributes:
        key: its name for ``--what``.
        title: its heading.
        about: a sentence on what is drawn.
        body: what is drawn; ``None`` if the trace lacks it, or a sentence says it all.
        missing: what the trace lacks, and how to record it; empty if ``about`` says it all.
    """

    key: str
    title: str
    about: str = ""
    body: Curves | HeatMap | Ranking | None = None
    missing: str = ""


def thinned(curve: Curve, buckets: int = 400) -> Curve:
    """Return a curve of a bounded number of points, which keeps every bucket's extremes.

    Args:
        curve: any number of points.
        buckets: of each the least, the greatest and the first non-finite value are kept.

    Examples:
        >>> curve = Curve("loss", range(6), [1.0, 9.0, 2.0, 3.0, float("nan"), 0.5])
        >>> list(thinned(curve, 2).xs)
        [0, 1, 3, 4, 5]
    """
    n = len(curve.xs)
    if not n:
        return curve
    kept = {0, n - 1}
    for bucket in range(buckets):
        part = range(bucket * n // buckets, (bucket + 1) * n // buckets)
        finite = [i for i in part if math.isfinite(curve.values[i])]
        if finite:
            kept.add(min(finite, key=curve.values.__getitem__))
            kept.add(max(finite, key=curve.values.__getitem__))
        kept.update([i for i in part if not math.isfinite(curve.values[i])][:1])
    order = sorted(kept)
    return Curve(curve.name, [curve.xs[i] for i in order], [curve.values[i] for i in order])
