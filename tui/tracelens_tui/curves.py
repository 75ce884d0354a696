"""Curves over training steps: what the timeline draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens_tui.texts import duration, number

_MOST_SCALARS = 8


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity by step.

    Attributes:
        name: what it is.
        steps: step numbers, int64 of shape (n,).
        values: float64 of shape (n,); NaN or Inf where the quantity was.
        known: where it was recorded at all, bool of shape (n,).
        unit: ``"ns"`` or empty.
    """

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    known: NDArray[np.bool_]
    unit: str = ""

    def text(self, value: float) -> str:
        """Return a value of this curve as text."""
        if self.unit == "ns" and math.isfinite(value):
            return duration(value)
        return number(float(value))


def of_steps(events: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Return the curves that a trace's steps carry: scalars first, loss before all."""
    rows = [event for event in events if isinstance(event.get("step"), int)]
    rows.sort(key=lambda event: event["step"])
    steps = np.array([event["step"] for event in rows], dtype=np.int64)
    names: dict[str, None] = {}
    for event in rows:
        scalars = event.get("scalars")
        if isinstance(scalars, Mapping):
            names.update(dict.fromkeys(str(name) for name in scalars))
    ordered = sorted(names, key=lambda name: ("loss" not in name, "norm" not in name, name))
    found = [_curve(name, steps, [_scalar(event, name) for event in rows])
             for name in ordered[:_MOST_SCALARS]]  # fmt: skip
    for name, key, unit in (
        ("step time", "duration_ns", "ns"),
        ("non-finite ops", "hits", ""),
        ("ops", "n_ops", ""),
        ("memory", "memory_bytes", ""),
        ("gpu busy", "gpu_busy", ""),
    ):
        curve = _curve(name, steps, [_number(event.get(key)) for event in rows], unit)
        if curve.known.any() and not (name == "ops" and not curve.values.any()):
            found.append(curve)
    return found


def _curve(
    name: str, steps: NDArray[np.int64], values: list[float | None], unit: str = ""
) -> Curve:
    known = np.array([value is not None for value in values], dtype=np.bool_)
    numbers = np.array([0.0 if value is None else value for value in values], dtype=np.float64)
    return Curve(name, steps, numbers, known, unit)


def _scalar(event: Mapping[str, Any], name: str) -> float | None:
    scalars = event.get("scalars")
    return _number(scalars.get(name)) if isinstance(scalars, Mapping) else None


def _number(value: Any) -> float | None:
    """Return a number of an event; the words ``"NaN"`` and ``"inf"`` stand for what JSON lacks."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def columns(curve: Curve, width: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Shrink a curve to a number of columns.

    Returns:
        The mean of the finite values of each column (NaN where there is none), and which columns
        hold a NaN or Inf.
    """
    n = len(curve.values)
    cells = max(1, min(n, width))
    edges = np.linspace(0, n, cells + 1).astype(np.int64)[:-1]
    if not n:
        return np.zeros(0), np.zeros(0, dtype=np.bool_)
    finite = np.isfinite(curve.values) & curve.known
    sums = np.add.reduceat(np.where(finite, curve.values, 0.0), edges)
    counts = np.add.reduceat(finite.astype(np.float64), edges)
    bad = np.add.reduceat((~np.isfinite(curve.values) & curve.known).astype(np.int64), edges) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / counts, np.nan), bad
