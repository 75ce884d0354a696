"""Numbers behind the tensor screen: statistics, histogram, a grid small enough to draw.

Everything here runs in a reader's thread and returns small arrays; of a large tensor only a band
of rows is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.events import Stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND_BYTES = 8 << 20
_BINS = 48


@dataclass(frozen=True, slots=True)
class Grid:
    """A tensor as cells to draw.

    Attributes:
        values: mean of the finite elements of each cell, float64 of shape (rows, columns); NaN
            where a cell has none.
        nan: which cells hold a NaN, bool of the same shape.
        inf: which cells hold an Inf.
        rows: first matrix row of each grid row, and the end, int64 of shape (rows + 1,).
        columns: likewise.
    """

    values: NDArray[np.float64]
    nan: NDArray[np.bool_]
    inf: NDArray[np.bool_]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Picture:
    """What one tensor, or a slice of it, looks like.

    Attributes:
        array: the values, still on disk.
        matrix: the same as two dimensions.
        stats: of all its elements.
        counts: histogram of the finite elements, int64 of shape (bins,).
        edges: its edges, float64 of shape (bins + 1,).
        grid: cells to draw.
    """

    array: NDArray[Any]
    matrix: NDArray[Any]
    stats: Stats
    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    grid: Grid


def picture_of(array: NDArray[Any], rows: int, columns: int) -> Picture:
    """Measure a tensor and shrink it to at most ``rows`` times ``columns`` cells."""
    matrix = as_matrix(array)
    stats = measure(array)
    counts, edges = histogram(array, stats)
    return Picture(array, matrix, stats, counts, edges, shrink(matrix, rows, columns))


def as_matrix(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view with two dimensions: a vector is one row, more dimensions are stacked."""
    if array.ndim == 0:
        return array.reshape(1, 1)
    if array.ndim == 1:
        return array.reshape(1, -1)
    return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])


def image_of(array: NDArray[Any]) -> NDArray[Any] | None:
    """Return (height, width, 3 or 1) if the last dimensions look like an image, else ``None``.

    Channels may come first (PyTorch) or last (TensorFlow); of a batch the first image is taken.
    """
    while array.ndim > 3 and array.shape[0] >= 1:
        array = array[0]
    if array.ndim == 2:
        return array[:, :, None] if min(array.shape) >= 8 else None
    if array.ndim != 3:
        return None
    if array.shape[0] in (1, 3) and min(array.shape[1:]) >= 4:
        return np.moveaxis(array, 0, -1)
    if array.shape[-1] in (1, 3) and min(array.shape[:2]) >= 4:
        return array
    return None


def _bands(flat: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    step = max(1, _BAND_BYTES // max(flat.dtype.itemsize, 1))
    for start in range(0, flat.size, step):
        yield start, np.asarray(flat[start : start + step])


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return real numbers: the magnitude of complex ones, 0 and 1 of booleans."""
    if values.dtype.kind == "c":
        magnitude: NDArray[Any] = np.abs(values)
        return magnitude
    return values.astype(np.float64 if values.dtype.kind != "f" else values.dtype, copy=False)


def measure(array: NDArray[Any]) -> Stats:
    """Return the statistics of all elements; those of values are over the finite ones."""
    nan = posinf = neginf = zero = n = 0
    total = squares = 0.0
    low, high = np.inf, -np.inf
    with np.errstate(all="ignore"):
        for _, band in _bands(array.reshape(-1)):
            band = _plain(band)
            nan += int(np.isnan(band).sum())
            posinf += int(np.isposinf(band).sum())
            neginf += int(np.isneginf(band).sum())
            zero += int((band == 0).sum())
            finite = band[np.isfinite(band)].astype(np.float64)
            if finite.size:
                n += finite.size
                total += float(finite.sum())
                squares += float((finite * finite).sum())
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if not n:
        return Stats(array.size, nan, posinf, neginf, zero)
    mean = total / n
    spread = max(squares / n - mean * mean, 0.0) ** 0.5
    return Stats(array.size, nan, posinf, neginf, zero, low, high, mean, spread, squares**0.5)


def histogram(
    array: NDArray[Any], stats: Stats, bins: int = _BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return counts and edges of the finite elements; no bin if there is none."""
    if stats.vmin is None or stats.vmax is None:
        return np.zeros(0, dtype=np.int64), np.zeros(1)
    low, high = stats.vmin, stats.vmax
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = np.zeros(bins, dtype=np.int64)
    for _, band in _bands(array.reshape(-1)):
        band = _plain(band)
        finite = band[np.isfinite(band)].astype(np.float64)
        counts += np.histogram(finite, bins=bins, range=(low, high))[0]
    return counts, np.linspace(low, high, bins + 1)


def shrink(matrix: NDArray[Any], rows: int, columns: int) -> Grid:
    """Shrink a matrix to cells; a single bad element keeps its cell marked."""
    height, width = matrix.shape
    row_edges = _edges(height, rows)
    column_edges = _edges(width, columns)
    shape = (len(row_edges) - 1, len(column_edges) - 1)
    values = np.full(shape, np.nan)
    nan, inf = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    starts = column_edges[:-1]
    with np.errstate(all="ignore"):
        for at in range(shape[0]):
            sums = np.zeros(shape[1])
            counts = np.zeros(shape[1])
            # One grid row may stand for many matrix rows: a few at a time.
            step = max(1, _BAND_BYTES // max(1, width * 8))
            for first in range(int(row_edges[at]), int(row_edges[at + 1]), step):
                last = min(first + step, int(row_edges[at + 1]))
                band = _plain(np.asarray(matrix[first:last]))
                finite = np.isfinite(band)
                sums += _per_cell(np.where(finite, band, 0).astype(np.float64), starts)
                counts += _per_cell(finite.astype(np.float64), starts)
                nan[at] |= _per_cell(np.isnan(band).astype(np.float64), starts) > 0
                inf[at] |= _per_cell(np.isinf(band).astype(np.float64), starts) > 0
            filled = counts > 0
            values[at, filled] = sums[filled] / counts[filled]
    return Grid(values, nan, inf, row_edges, column_edges)


def _edges(size: int, most: int) -> NDArray[np.int64]:
    cells = max(1, min(size, most))
    return np.linspace(0, max(size, 1), cells + 1).astype(np.int64)


def _per_cell(band: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    if band.shape[1] == 0:
        return np.zeros(len(starts))
    return np.add.reduceat(band.sum(axis=0), starts)


def find_bad(array: NDArray[Any], after: int, direction: int) -> int | None:
    """Return the flat index of the next (or previous) non-finite element, ``None`` if none."""
    if array.dtype.kind not in "fc":
        return None
    flat = array.reshape(-1)
    if direction > 0:
        for start, band in _bands(flat[after + 1 :]):
            bad = np.flatnonzero(~np.isfinite(band))
            if bad.size:
                return after + 1 + start + int(bad[0])
        return None
    step = max(1, _BAND_BYTES // flat.dtype.itemsize)
    end = max(after, 0)
    while end > 0:
        start = max(0, end - step)
        bad = np.flatnonzero(~np.isfinite(np.asarray(flat[start:end])))
        if bad.size:
            return start + int(bad[-1])
        end = start
    return None


def find_extreme(array: NDArray[Any], largest: bool) -> int | None:
    """Return the flat index of the least or greatest finite element, ``None`` if none is finite."""
    best: tuple[float, int] | None = None
    for start, band in _bands(array.reshape(-1)):
        band = _plain(band)
        finite = np.isfinite(band)
        if not finite.any():
            continue
        worst = -np.inf if largest else np.inf
        kept = np.where(finite, band, worst)
        at = int(kept.argmax() if largest else kept.argmin())
        value = float(kept[at])
        if best is None or (value > best[0] if largest else value < best[0]):
            best = value, start + at
    return best[1] if best else None
