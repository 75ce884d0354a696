"""Tells a bad call: its sinks as events, its replay as a note."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracelens import stats
from tracelens.events import NO_ID
from tracelens.sinks import fields_of
from tracelens_tensorflow import tensors

if TYPE_CHECKING:
    from tracelens_tensorflow.calls import Call
    from tracelens_tensorflow.replay import Outcome
    from tracelens_tensorflow.slots import Slot


def sinks_of(call: Call, tripped: Sequence[Slot], outcome: Outcome) -> list[dict[str, Any]]:
    """Return the sinks of a call, with the values that a replay found.

    Args:
        call: the call.
        tripped: checks of sinks that the first run found bad.
        outcome: what came of the replay.

    Returns:
        Fields of ``sink`` events.
    """
    doubts = [] if outcome.exact or not outcome.ran else list(outcome.remarks)
    found: list[dict[str, Any]] = []
    seen = {(each.sink, each.name): each for each in reversed(outcome.seen)}
    wanted = [(slot.sink, slot.name) for slot in tripped] or list(seen)
    for kind, name in dict.fromkeys(wanted):
        known = seen.get((kind, name))
        value_id = known.value_id if known is not None else NO_ID
        if kind == "output" and value_id >= 0 and any(f["value_id"] == value_id for f in found):
            continue  # The loss, returned.
        tensor = known.tensor if known is not None else None
        found.append(sink_fields(kind, name, call.step, tensor, value_id, doubts))
    return found


def sink_fields(
    sink: str, name: str, step: int, tensor: Any, value_id: int, doubts: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the fields of a ``sink`` event.

    Args:
        sink: its kind.
        name: its name.
        step: the step's number.
        tensor: the bad eager tensor, None if it is not at hand.
        value_id: the value it holds, -1 unknown.
        doubts: why the value's history may not be the first run's.
    """
    told = {} if tensor is None else described(tensor)
    return fields_of(sink, name, step, value_id, told, doubts)


def described(tensor: Any) -> dict[str, Any]:
    """Return dtype, shape, statistics and the first bad element of an eager tensor."""
    fields: dict[str, Any] = {
        "dtype": tensor.dtype.name,
        "shape": [int(size) for size in tensor.shape],
    }
    array = tensors.array_of(tensor)
    if array is not None:
        found = stats.measure(array)
        fields["stats"] = {
            "numel": found.numel,
            "nan": found.nan,
            "posinf": found.posinf,
            "neginf": found.neginf,
            "vmin": found.vmin,
            "vmax": found.vmax,
        }
        fields["first_bad"] = [int(place) for place in stats.first_bad(array)]
    return fields


def describe(outcome: Outcome) -> str:
    """Return the note of a replay.

    Examples:
        >>> from tracelens_tensorflow.replay import Outcome
        >>> describe(Outcome(ran=True, compared=6, equal=6, duration_ns=2_000_000))
        'replay equal: 6/6 results (run again op by op in 2 ms)'
        >>> describe(Outcome(reason="a v1 loop"))
        'replay impossible: a v1 loop'
    """
    remarks = "".join(f"; {remark}" for remark in outcome.remarks)
    if not outcome.ran:
        return f"replay impossible: {outcome.reason}{remarks}"
    word = "equal" if outcome.equal == outcome.compared else "near" if outcome.exact else "unequal"
    before = f", {outcome.repeated} calls before it repeated" if outcome.repeated else ""
    return (
        f"replay {word}: {outcome.equal}/{outcome.compared} results "
        f"(run again op by op in {outcome.duration_ns / 1e6:.0f} ms{before}){remarks}"
    )
