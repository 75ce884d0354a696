"""Which tensors can be looked at from here, and their values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracelens.actions.values import sliced
from tracelens.events import Op, Stats, TensorRecord
from tracelens.storage.reader import TraceReader
from tracelens_tui.pictures import Picture, image_of, picture_of
from tracelens_tui.texts import dtype, shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

Json = dict[str, Any]

HOW = 'record with capture="tensors", or name it with tl.tap(x, "name")'


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor to look at.

    Attributes:
        label: ``in 0``, or the name it was stored under.
        kind: dtype and shape.
        step: its step.
        record: what the trace recorded of it; ``None`` for a stored tensor that is no port.
        row: its row of the table ``tensors``; ``None`` if its values were not stored.
    """

    label: str
    kind: str
    step: int
    record: TensorRecord | None = None
    row: Json | None = None

    @property
    def command_name(self) -> str:
        """What commands call it."""
        return self.label.replace(" ", "") if self.record is not None else self.label


@dataclass(frozen=True, slots=True)
class View:
    """A tensor read from the trace.

    Attributes:
        target: which.
        index: the slice of it, ``[0, :, 3]`` or empty.
        picture: its numbers.
        image: (height, width, channels) if it looks like an image.
    """

    target: Target
    index: str
    picture: Picture
    image: NDArray[Any] | None


def targets(reader: TraceReader, op: Op | None, rank: int) -> list[Target]:
    """Return the ports of an op, then the stored tensors, those of its step first."""
    stored = [row for row in reader.tensors() if row["rank"] == rank]
    by_value = {row["value_id"]: row for row in stored if row["value_id"] >= 0}
    found: list[Target] = []
    if op is not None:
        for label, tensors in (("in", op.inputs), ("out", op.outputs)):
            for slot, tensor in enumerate(tensors):
                kind = f"{dtype(tensor.dtype)} {shape(tensor.shape)}".strip()
                row = by_value.get(tensor.value_id) if tensor.value_id >= 0 else None
                found.append(Target(f"{label} {slot}", kind, op.step, tensor, row))
    here = op.step if op is not None else 0
    stored.sort(key=lambda row: (row["step"] != here, row["step"], row["name"]))
    return found + [_stored(row) for row in stored]


def step_before(reader: TraceReader, target: Target, rank: int) -> Target | None:
    """Return the same tensor of the step before in which it was stored."""
    row = target.row
    if row is None:
        return None
    before = [
        other
        for other in reader.tensors()
        if other["name"] == row["name"] and other["rank"] == rank and other["step"] < row["step"]
    ]
    return _stored(max(before, key=lambda other: other["step"])) if before else None


def load(reader: TraceReader, target: Target, index: str, rows: int, columns: int) -> View:
    """Read and measure a tensor, or a slice of it.

    Raises:
        TraceError: its file is missing or damaged.
        CommandError: the slice does not fit.
    """
    assert target.row is not None
    array = reader.tensor_of(target.row)
    if index:
        array = sliced(array, index)
    return View(target, index, picture_of(array, rows, columns), image_of(array))


def default_target(found: list[Target]) -> int:
    """Return which to show first: the first output with values, else the first with any."""
    for wanted in ("out", "in", ""):
        for at, target in enumerate(found):
            if target.row is not None and target.label.startswith(wanted):
                return at
    outputs = [at for at, target in enumerate(found) if target.label.startswith("out")]
    return outputs[0] if outputs else 0


def stats_of(target: Target) -> Stats | None:
    """Return the recorded statistics."""
    return target.record.stats if target.record is not None else None


def _stored(row: Json) -> Target:
    try:
        sizes = json.loads(row["shape"])
    except (ValueError, RecursionError):
        sizes = None
    sizes = sizes if isinstance(sizes, list) else None
    return Target(str(row["name"]), f"{dtype(row['dtype'])} {shape(sizes)}", row["step"], None, row)
