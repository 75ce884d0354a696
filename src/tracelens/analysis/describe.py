"""Recorded things as plain JSON: no NaN, no Infinity, only what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tracelens.analysis.dtypes import limits
from tracelens.events import Op, Source, Stats, TensorRecord

Json = dict[str, Any]


def number(value: float | None) -> float | str | None:
    """Return a JSON number, or the word for a value that JSON has no number for.

    >>> number(1.5), number(float("inf")), number(None)
    (1.5, 'inf', None)
    """
    if value is None or math.isfinite(value):
        return value
    return str(value)


def real(value: object) -> float | None:
    """Return a finite number read from a file, ``None`` for anything else.

    >>> real(2), real(10**400), real("3"), real(float("nan"))
    (2.0, None, None, None)
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(event: Mapping[str, Any], key: str, default: int) -> int:
    """Return a whole number of an event, which a file may lack or hold as anything.

    >>> whole({"step": 3}, "step", 0), whole({"step": None}, "step", 0), whole({}, "step", -1)
    (3, 0, -1)
    """
    value = event.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def source(frame: Source | None) -> Json | None:
    """Return a source line as JSON."""
    if frame is None:
        return None
    return {
        "file": frame.file,
        "line": frame.line,
        "function": frame.function,
        "code": frame.code,
    }


def unravel(flat: int, shape: Sequence[int]) -> list[int]:
    """Return the row-major index of a flat position.

    >>> unravel(5, (2, 3)), unravel(0, ())
    ([1, 2], [])
    """
    index: list[int] = []
    for size in reversed(shape):
        flat, place = divmod(flat, max(size, 1))
        index.append(place)
    return index[::-1]


def tensor(record: TensorRecord, *, batch_size: int | None = None) -> Json:
    """Return one input or output as JSON.

    Args:
        record: what was recorded of it.
        batch_size: if its first dimension has this size, the first bad elements' samples are
            named.
    """
    told: Json = {
        "shape": list(record.shape) if record.shape is not None else None,
        "dtype": record.dtype or None,
        "device": record.device or None,
    }
    if record.parameter:
        told["parameter"] = True
    limit = limits(record.dtype)
    told["limit"] = limit.largest if limit else None
    if record.overwritten:
        # What was measured is what the op wrote there, not what it read.
        told["overwritten"] = True
        return {**told, **statistics(None)}
    told.update(statistics(record.stats))
    if record.stats is None or record.stats.nonfinite:
        told.update(where_bad(record.first_bad, record.shape, batch_size))
    return told


def statistics(stats: Stats | None) -> Json:
    """Return statistics as JSON; what was not computed is null."""
    if stats is None:
        return {"numel": None, "nan": None, "posinf": None, "neginf": None}
    told: Json = {
        "numel": stats.numel,
        "nan": stats.nan,
        "posinf": stats.posinf,
        "neginf": stats.neginf,
        "zero": stats.zero,
        "min": number(stats.vmin),
        "max": number(stats.vmax),
    }
    for name in ("mean", "std", "l2"):
        value = getattr(stats, name)
        if value is not None:
            told[name] = number(value)
    if stats.sampled:
        told["sampled"] = True
    return told


def where_bad(
    first_bad: Sequence[int], shape: Sequence[int] | None, batch_size: int | None = None
) -> Json:
    """Return the indices of the first bad elements, and the batch samples they belong to."""
    if not first_bad or shape is None:
        return {}
    indices = [unravel(flat, shape) for flat in first_bad]
    told: Json = {"first_bad": indices}
    if shape and batch_size is not None and shape[0] == batch_size:
        told["samples"] = sorted({index[0] for index in indices})
    return told


def op_summary(op: Op, frame: Source | None, note: str = "") -> Json:
    """Return one entry of a path."""
    return {
        "op": op.name,
        "phase": op.phase.label,
        "op_id": op.op_id,
        "step": op.step,
        "module": op.module or None,
        "source": source(frame),
        "note": note,
    }


def stats_of_sink(sink: Mapping[str, Any]) -> Stats | None:
    """Return a sink event's statistics; ``None`` if it has none that can be read."""
    told = sink.get("stats")
    if not isinstance(told, Mapping):
        return None

    def count(name: str) -> int:
        return max(whole(told, name, 0), 0)

    def end(name: str, other: str) -> float | None:
        return real(told.get(name, told.get(other)))

    return Stats(
        numel=count("numel"),
        nan=count("nan"),
        posinf=count("posinf"),
        neginf=count("neginf"),
        vmin=end("vmin", "min"),
        vmax=end("vmax", "max"),
    )
