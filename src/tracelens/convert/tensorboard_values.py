"""Histograms of a trace's stored values for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tracelens.errors import TraceError

if TYPE_CHECKING:
    from tracelens.convert.tensorboard import Run

_BUCKETS = 64
_MAX_HISTOGRAMS = 20_000
_CHUNK = 1 << 20


def write(run: Run) -> None:
    """Write the histogram of each stored tensor's finite values."""
    times: dict[int, int] = {}
    written = 0
    for row in run.reader.tensors():
        if row["rank"] != run.rank or not run.wants(row["step"]) or row["step"] < 0:
            continue
        try:
            told = histogram(run.reader.tensor_of(row))
        except TraceError:
            continue  # a damaged value is told by `tracelens verify`; the others are still written
        if told is not None and written < _MAX_HISTOGRAMS:
            written += 1
            step = row["step"]
            if step not in times:
                times[step] = run.begin_ns(step)
            run.events.histogram(run.wall_time_s(times[step]), step, row["name"], **told)


def histogram(values: NDArray[Any]) -> dict[str, Any] | None:
    """Return the fields of a ``HistogramProto``; ``None`` if no value is finite.

    Args:
        values: of any shape, real numbers. They are read a part at a time.
    """
    if values.dtype.kind not in "fiub" or not values.size:
        return None
    flat = values.reshape(-1)
    low, high, total, squares, count = np.inf, -np.inf, 0.0, 0.0, 0
    for part in _finite(flat):
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        total, squares = total + float(part.sum()), squares + float(np.square(part).sum())
        count += part.size
    if not count:
        return None
    if low == high:
        return _fields(low, high, count, total, squares, [high], [count])
    edges = np.linspace(low, high, _BUCKETS + 1)
    counts = np.zeros(_BUCKETS, dtype=np.int64)
    for part in _finite(flat):
        counts += np.histogram(part, edges)[0]
    return _fields(low, high, count, total, squares, edges[1:].tolist(), counts.tolist())


def _finite(flat: NDArray[Any]) -> Any:
    for at in range(0, flat.size, _CHUNK):
        part = np.asarray(flat[at : at + _CHUNK], dtype=np.float64)
        part = part[np.isfinite(part)]
        if part.size:
            yield part


def _fields(
    low: float,
    high: float,
    count: int,
    total: float,
    squares: float,
    limits: list[float],
    counts: list[int],
) -> dict[str, Any]:
    return {
        "min": low,
        "max": high,
        "num": float(count),
        "sum": total,
        "sum_squares": squares,
        "bucket_limit": limits,
        "bucket": [float(each) for each in counts],
    }
