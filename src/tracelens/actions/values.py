"""The values of a tensor as text: slices, non-finite places, a histogram."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracelens.command import CommandError, Context
from tracelens.events import TensorRecord
from tracelens.texts import number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from tracelens.lazy import np

_SLOT = re.compile(r"(?:(in|out)|([<>])) ?(\d{0,4})")
_PART = re.compile(r"(-?\d{1,12})?(?:(:)(-?\d{1,12})?(?:(:)(-?\d{1,12})?)?)?")
_BINS = 12
_BAR = 40
_FIRST_BAD = 5
_SUMMARISED = 1_000
"""Elements above which NumPy's text leaves out the middle."""


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor that a command named.

    Attributes:
        title: what to call it.
        record: what the trace recorded of it, ``None`` if it is known by its values only.
        values: its values, ``None`` if they are not stored.
    """

    title: str
    record: TensorRecord | None
    values: NDArray[Any] | None


def named(context: Context, text: str) -> Named:
    """Find a tensor: ``out0``, ``in1``, a stored name, or an expression of the paused program.

    Raises:
        CommandError: there is none.
    """
    op = context.cursor.op
    found = _SLOT.fullmatch(text or "out0")
    if found is not None and op is not None:
        side = "in" if "in" in (found[1] or "") or found[2] == "<" else "out"
        slot = int(found[3] or 0)
        records = op.inputs if side == "in" else op.outputs
        if slot >= len(records):
            known = f"it has {len(records)} {side}puts"
            raise CommandError(f"op {op.op_id} has no {side}{slot}: {known}")
        record = records[slot]
        return Named(f"{op.name} {side}{slot}", record, stored_value(context, record.value_id))
    if context.local is not None:
        values = as_array(context.local(text))
        if values is not None:
            return Named(text, None, values)
    return Named(text, None, _stored_name(context, text))


def as_array(value: Any) -> NDArray[Any] | None:
    """Return a tensor's values as an array; ``None`` if it is none.

    A framework's tensor is detached, brought to the CPU and widened by its own methods.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bool | int | float | np.generic):
        return np.asarray(value)
    for method in ("detach", "cpu"):
        convert = getattr(value, method, None)
        value = convert() if callable(convert) else value
    if not callable(getattr(value, "numpy", None)):
        return None
    try:
        return np.asarray(value.numpy())
    except (TypeError, RuntimeError, NotImplementedError):
        # NumPy has no bfloat16 of its own.
        widened = value.float() if callable(getattr(value, "float", None)) else value
        return np.asarray(widened.numpy())


def sliced(values: NDArray[Any], index: str) -> NDArray[Any]:
    """Apply ``[0, :, 3]``: whole numbers, slices and one ``...``.

    Raises:
        CommandError: it is not that, or does not fit the shape.

    Examples:
        >>> sliced(np.arange(6).reshape(2, 3), "[1, ::2]").tolist()
        [3, 5]
    """
    parts: list[Any] = []
    for text in index.strip()[1:-1].split(","):
        text = text.strip().replace(" ", "")
        found = _PART.fullmatch(text)
        if text == "...":
            parts.append(Ellipsis)
        elif not text or found is None:
            raise CommandError(f"not an index: {index!r}; for example [0, :, 3] or [..., 5:10]")
        elif found[2]:
            bounds = (found[1], found[3], found[5])
            parts.append(slice(*(None if bound is None else int(bound) for bound in bounds)))
        else:
            parts.append(int(text))
    try:
        return np.asarray(values[tuple(parts)])
    except (IndexError, ValueError) as error:
        shape = list(values.shape)
        raise CommandError(f"{index} does not fit the shape {shape}: {error}") from None


def value_lines(values: NDArray[Any], index: str = "", *, everything: bool = False) -> list[str]:
    """Return values as text, and for a whole tensor where it is not finite and a histogram."""
    lines: list[str] = []
    shown = sliced(values, index) if index else values
    if not index:
        lines += _bad_lines(values)
        lines += histogram_lines(values)
    threshold = shown.size + 1 if everything else _SUMMARISED
    text = np.array2string(shown, threshold=threshold, precision=5, suppress_small=False)
    return [*lines, *text.splitlines()]


def histogram_lines(values: NDArray[Any]) -> list[str]:
    """Return a histogram of the finite values, one bin a line; none for fewer than two values."""
    if values.dtype.kind not in "fiu" or values.size < 2:
        return []
    flat = values.ravel()
    finite = flat[np.isfinite(flat)].astype(np.float64)
    if not finite.size or finite.min() == finite.max():
        return []
    counts, edges = np.histogram(finite, bins=min(_BINS, finite.size))
    widest = counts.max()
    return [
        f"{number(float(low)):>11}  {'█' * int(np.ceil(_BAR * count / widest)):{_BAR}} {count:,}"
        for low, count in zip(edges, counts, strict=False)
    ]


def _bad_lines(values: NDArray[Any]) -> list[str]:
    if values.dtype.kind not in "fc":
        return []
    bad = np.flatnonzero(~np.isfinite(values).ravel())
    if not bad.size:
        return ["all finite"]
    shown = [
        str([int(place) for place in np.unravel_index(int(flat), values.shape)])
        for flat in bad[:_FIRST_BAD]
    ]
    rest = " ..." if bad.size > _FIRST_BAD else ""
    return [f"{bad.size:,} of {values.size:,} not finite, first at {', '.join(shown)}{rest}"]


def stored_value(context: Context, value_id: int) -> NDArray[Any] | None:
    """Return the stored values of a value id, ``None`` if none are stored."""
    if value_id < 0:
        return None
    reader = context.cursor.reader
    for row in reader.tensors():
        if row["value_id"] == value_id and row["rank"] == context.cursor.rank:
            return reader.tensor_of(row)
    return None


def _stored_name(context: Context, name: str) -> NDArray[Any]:
    """Return a stored tensor of this training step, or else the last before it."""
    cursor = context.cursor
    here = cursor.op.step if cursor.op is not None else 0
    rows = [
        row for row in cursor.reader.tensors() if row["name"] == name and row["rank"] == cursor.rank
    ]
    if not rows:
        names = sorted({row["name"] for row in cursor.reader.tensors()})
        known = ", ".join(names[:6]) or "none"
        raise CommandError(f"no tensor {name!r}: out0, in0, or a stored one ({known})")
    before = [row for row in rows if row["step"] <= here]
    return cursor.reader.tensor_of(max(before or rows, key=lambda row: row["step"]))
