"""Ops already built, as a chunk: so that one condition serves columns and single ops alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracelens.events import Op
from tracelens.storage.chunks import Texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from tracelens.lazy import np


class OpChunk:
    """Some ops as columns of the table ``ops``.

    Args:
        ops: the ops, in the order of the rows.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = ops

    def __len__(self) -> int:
        return len(self._ops)

    def texts(self, column: str) -> Texts:
        """Return a text column: codes of shape (len,) and the distinct texts."""
        known: dict[str, int] = {}
        codes = np.full(len(self._ops), -1, dtype=np.int64)
        for row, op in enumerate(self._ops):
            text = _TEXTS[column](op)
            if text is not None:
                codes[row] = known.setdefault(text, len(known))
        return codes, list(known)

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a numeric column, NaN where the number is unknown."""
        values = [_number(op, column) for op in self._ops]
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    def integers(self, column: str) -> NDArray[np.int64]:
        """Return a whole-number column, -1 where the number is unknown."""
        values = [_number(op, column) for op in self._ops]
        return np.array([-1 if v is None else v for v in values], dtype=np.int64)

    def lists_hold(self, column: str, value: int) -> NDArray[np.bool_]:
        """Tell for each op whether a list column holds a value."""
        side = "inputs" if column == "in_ids" else "outputs"
        held = [any(t.value_id == value for t in getattr(op, side)) for op in self._ops]
        return np.array(held, dtype=np.bool_)


def _number(op: Op, column: str) -> float | None:
    if column == "line":
        return op.source.line if op.source else None
    if column in _STATS:
        stats = op.outputs[0].stats if op.outputs else None
        return None if stats is None else _STATS[column](stats)
    value = getattr(op, column)
    if column in ("parent_id", "fwd_op_id"):
        return None if value < 0 else value
    return None if value is None else int(value)


def _json(values: list[Any]) -> str | None:
    return json.dumps(values) if any(value is not None for value in values) else None


_TEXTS: dict[str, Callable[[Op], str | None]] = {
    "name": lambda op: op.name,
    "module": lambda op: op.module or None,
    "phase": lambda op: op.phase.label,
    "file": lambda op: op.source.file if op.source else None,
    "function": lambda op: (op.source.function or None) if op.source else None,
    "code": lambda op: (op.source.code or None) if op.source else None,
    "device": lambda op: (op.outputs[0].device or None) if op.outputs else None,
    "shapes": lambda op: _json([None if t.shape is None else list(t.shape) for t in op.outputs]),
    "dtypes": lambda op: _json([t.dtype or None for t in op.outputs]),
}

_STATS: dict[str, Callable[[Any], float | None]] = {
    "numel": lambda stats: stats.numel,
    "nan_count": lambda stats: stats.nan,
    "inf_count": lambda stats: stats.posinf + stats.neginf,
    "neginf_count": lambda stats: stats.neginf,
    "zero_count": lambda stats: stats.zero,
    "vmin": lambda stats: stats.vmin,
    "vmax": lambda stats: stats.vmax,
    "mean": lambda stats: stats.mean,
    "std": lambda stats: stats.std,
    "l2": lambda stats: stats.l2,
}
