"""What is known of a run beside its ops: batches, losses, notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracelens.analysis.describe import real, unravel, whole
from tracelens.events import Op, Phase, TensorRecord

Event = Mapping[str, Any]

_LOSS_NAMES = ("loss", "train_loss", "train/loss", "training_loss")
_MAX_INDICES = 16


@dataclass(frozen=True, slots=True)
class Context:
    """Events that help to explain a cause.

    Attributes:
        data: ``data`` events: which batch an op handed over.
        steps: ``step`` events: scalars.
        notes: ``note`` events.
        max_ops: bound of a walk, 0 for the default.
    """

    data: Sequence[Event] = ()
    steps: Sequence[Event] = ()
    notes: Sequence[Event] = ()
    max_ops: int = 0

    @classmethod
    def of(cls, told: Mapping[str, Any] | None) -> Context:
        """Make one from a mapping; unknown keys are ignored."""
        told = told or {}
        return cls(
            data=tuple(told.get("data") or ()),
            steps=tuple(told.get("steps") or ()),
            notes=tuple(told.get("notes") or ()),
            max_ops=int(told.get("max_ops") or 0),
        )

    @classmethod
    def of_events(cls, events: Iterable[Event]) -> Context:
        """Make one from a trace's events."""
        sorted_out: dict[str, list[Event]] = {"data": [], "step": [], "note": []}
        for event in events:
            kind = event.get("t")
            if kind in sorted_out:
                sorted_out[kind].append(event)
        return cls(sorted_out["data"], sorted_out["step"], sorted_out["note"])

    def losses(self, until_step: int) -> list[tuple[int, float]]:
        """Return ``(step, loss)`` of the finite losses logged up to a step, oldest first."""
        found = []
        for event in self.steps:
            scalars = event.get("scalars")
            step = event.get("step")
            if not isinstance(scalars, Mapping) or not isinstance(step, int) or step > until_step:
                continue
            name = next((n for n in _LOSS_NAMES if n in scalars), None)
            value = real(scalars.get(name)) if name else None
            if value is not None:
                found.append((step, value))
        return sorted(found)

    def finite_loss(self, sink: Event) -> float | None:
        """Return the loss logged for the step of a sink that is not the loss itself."""
        step = sink.get("step")
        if sink.get("sink") == "loss" or not isinstance(step, int):
            return None
        return next((loss for at, loss in reversed(self.losses(step)) if at == step), None)

    def data_of(self, op: Op) -> Event | None:
        """Return the batch an op handed over, or else the batch of its step."""
        own = [event for event in self.data if event.get("op_id") == op.op_id]
        same_step = [event for event in self.data if event.get("step") == op.step]
        if op.phase is Phase.DATA and own:
            return own[0]
        # Several batches in one step (accumulation): the last one handed over before the op.
        before = [event for event in same_step if whole(event, "op_id", -1) <= op.op_id]
        candidates = before or same_step
        return candidates[-1] if candidates else None

    def batch_size(self, step: int) -> int | None:
        """Return the batch size of a step, ``None`` if unknown or not the same throughout."""
        sizes = {whole(event, "batch_size", 0) for event in self.data if event.get("step") == step}
        size = sizes.pop() if len(sizes) == 1 else 0
        return size if size > 0 else None

    def data_json(self, event: Event, tensor: TensorRecord) -> dict[str, Any]:
        """Return a batch as JSON, with the samples that a bad tensor of it names."""
        indices = event.get("sample_indices")
        batch_size = event.get("batch_size")
        rows: list[int] = []
        if tensor.shape and tensor.shape[0] == batch_size:
            rows = sorted({unravel(flat, tensor.shape)[0] for flat in tensor.first_bad})
        told: dict[str, Any] = {
            "loader": event.get("loader"),
            "batch_index": event.get("batch_index"),
            "batch_size": batch_size,
            "samples": rows,
        }
        if isinstance(indices, Sequence) and not isinstance(indices, str):
            named = [indices[row] for row in rows if row < len(indices)]
            told["sample_indices"] = named[:_MAX_INDICES]
        return told
