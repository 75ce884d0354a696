"""Tells a replay: the bad values as sinks with where they came from, how it went as a note."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracelens import stats
from tracelens.events import NO_ID, SLOT_BITS
from tracelens_tensorflow import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracelens.session import Session
    from tracelens_tensorflow.replay import Outcome


def sink_fields(
    sink: str,
    name: str,
    step: int,
    tensor: Any,
    value_id: int = NO_ID,
    doubts: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of a ``sink`` event for one bad tensor.

    Args:
        sink: the kind of sink.
        name: the tensor's name.
        step: the step's number.
        tensor: the bad eager tensor, ``None`` if it is gone.
        value_id: the value it holds, -1 unknown.
        doubts: why the value's history may not be the first run's.
    """
    fields: dict[str, Any] = {
        "sink": sink,
        "name": name,
        "step": step,
        "op_id": value_id >> SLOT_BITS if value_id >= 0 else NO_ID,
        "value_id": value_id,
        **(describe(tensor) if tensor is not None else {}),
    }
    if doubts:
        fields["doubts"] = list(doubts)
    return fields


def describe(tensor: Any) -> dict[str, Any]:
    """Return the ``dtype shape stats first_bad`` keys of a ``sink`` event for an eager tensor."""
    fields: dict[str, Any] = {"dtype": tensor.dtype.name, "shape": list(tensor._shape_tuple())}
    array = tensors.array_of(tensor)
    found = stats.measure(array) if array is not None else None
    if found is None:
        return fields
    names = ("numel", "nan", "posinf", "neginf", "vmin", "vmax")
    fields["stats"] = {name: getattr(found, name) for name in names}
    fields["first_bad"] = list(stats.first_bad(array))
    return fields


def sinks_of(outcome: Outcome, step: int) -> list[dict[str, Any]]:
    """Return the sinks of a replay, as ``tracelens.sinks.SinkFilter`` takes them."""
    doubts = doubts_of(outcome)
    return [
        sink_fields(seen.sink, seen.name, step, seen.tensor, seen.value_id, doubts)
        for seen in outcome.seen
    ]


def doubts_of(outcome: Outcome) -> list[str]:
    """Return why the cause that a replay names may not be the first run's; empty if it is."""
    return list(outcome.remarks) if outcome.ran and not outcome.exact else []


def note_replay(session: Session, step: int, outcome: Outcome) -> None:
    """Write the note of a replay; one that proves nothing is a warning."""
    severity = "info" if outcome.exact else "warning"
    session.note("replay", describe_outcome(outcome), severity, step)


def describe_outcome(outcome: Outcome) -> str:
    """Return the note of a replay, one line."""
    remarks = "".join(f"; {remark}" for remark in outcome.remarks)
    if not outcome.ran:
        return f"replay impossible: {outcome.reason}{remarks}"
    near = f", {outcome.close} of them near" if outcome.close else ""
    word = "equal" if outcome.equal + outcome.close == outcome.compared else "not equal"
    before = f" after {outcome.repeated} earlier calls" if outcome.repeated else ""
    return (
        f"replay {word}: {outcome.equal + outcome.close}/{outcome.compared} results{near} "
        f"({outcome.n_ops} ops run again{before} in {outcome.duration_ns / 1e6:.0f} ms){remarks}"
    )
