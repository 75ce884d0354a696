"""Tell a sentinel's hit: the bad loss and gradients as sinks, the replay as a note."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tracelens.events import NO_ID
from tracelens.sinks import fields_of
from tracelens_torch.nonfinite import describe, is_nonfinite

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.rerun import Outcome

Named = Sequence[tuple[str, torch.Tensor]]


def sinks_of(
    step: int, losses: Sequence[torch.Tensor], parameters: Named, outcome: Outcome
) -> list[dict[str, Any]]:
    """Return the bad loss and gradients of a step, with the values that a replay found.

    Args:
        step: the step's number.
        losses: what backward was called on.
        parameters: names and parameters, gradients in place.
        outcome: what came of the replay.

    Returns:
        Fields of ``sink`` events.
    """
    doubts = doubts_of(outcome)
    sinks: list[dict[str, Any]] = []
    paired = len(outcome.losses) == len(losses)
    for place, loss in enumerate(losses):
        if is_nonfinite(loss):
            value_id = outcome.losses[place] if paired else NO_ID
            sinks.append(sink_fields("loss", "loss", step, loss, value_id, doubts))
    bad = [
        (_value(outcome, name), name, parameter.grad)
        for name, parameter in parameters
        if parameter.grad is not None and is_nonfinite(parameter.grad)
    ]
    # One gradient stands for all that went bad together (`SinkFilter`): only it is described.
    bad.sort(key=lambda entry: (entry[0] < 0, entry[0]))
    for place, (value_id, name, gradient) in enumerate(bad):
        fields = sink_fields("gradient", name, step, gradient, value_id, doubts, bare=place > 0)
        sinks.append(fields)
    return sinks


def note_replay(session: Session, step: int, outcome: Outcome) -> None:
    """Write the note of a replay."""
    session.note("replay", describe_outcome(outcome), severity(outcome), step)


def sink_fields(
    sink: str,
    name: str,
    step: int,
    tensor: torch.Tensor,
    value_id: int,
    doubts: Sequence[str] = (),
    *,
    bare: bool = False,
) -> dict[str, Any]:
    """Return the fields of a ``sink`` event for one bad tensor.

    Args:
        sink: the kind of sink.
        name: the tensor's name.
        step: the step's number.
        tensor: the bad tensor.
        value_id: the value it holds, -1 unknown.
        doubts: why the value's history may not be the first run's.
        bare: leave its statistics out.
    """
    return fields_of(sink, name, step, value_id, {} if bare else describe(tensor), doubts)


def doubts_of(outcome: Outcome) -> list[str]:
    """Return why the cause that a replay names may not be the first run's; empty if it is."""
    if not outcome.ran or outcome.exact:
        return []
    unequal = (
        f"found by running the step again, which gave {outcome.equal} of {outcome.compared} "
        f"gradients bit for bit"
    )
    return [unequal, *outcome.remarks] if outcome.equal < outcome.compared else outcome.remarks


def describe_outcome(outcome: Outcome) -> str:
    """Return the note of a replay.

    Examples:
        >>> from tracelens_torch.rerun import Outcome
        >>> describe_outcome(Outcome(ran=True, compared=6, equal=6, duration_ns=2_000_000))
        'replay equal: 6/6 gradients (step run again in 2 ms)'
        >>> describe_outcome(Outcome(reason="no optimizer"))
        'replay impossible: no optimizer'
    """
    remarks = "".join(f"; {remark}" for remark in outcome.remarks)
    if not outcome.ran:
        return f"replay impossible: {outcome.reason}{remarks}"
    word = "equal" if outcome.equal == outcome.compared else "not equal"
    blank = ", NaN throughout" if outcome.blank and outcome.blank == outcome.equal else ""
    return (
        f"replay {word}: {outcome.equal}/{outcome.compared} gradients{blank} "
        f"({outcome.how} run again in {outcome.duration_ns / 1e6:.0f} ms){remarks}"
    )


def severity(outcome: Outcome) -> str:
    """Return a note's severity: a replay that proves nothing is a warning."""
    return "info" if outcome.exact else "warning"


def _value(outcome: Outcome, name: str) -> int:
    """Return the value id of a gradient, unless the second run's was finite."""
    gradient = outcome.gradients.get(name)
    if gradient is None or not is_nonfinite(gradient):
        return NO_ID
    return outcome.values.get(name, NO_ID)
