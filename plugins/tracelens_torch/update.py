"""Looks at an optimizer's update again, on copies, when it made a parameter bad.

At guard level the ops of a ``torch.optim`` step are not observed; its parameters are checked
instead. When one is bad, the update is run once more under observation on copies of the
parameters and of the optimizer's state, so that the op that did it gets a name. The copies hold
0 where the real parameters are bad, and the state is one update further on: the values are
close to, but not, those of the update itself, and the trace says so.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from tracelens.session import Session
    from tracelens_torch.engines import Engine


def observe_again(
    optimizer: Optimizer, parameters: list[torch.Tensor], engine: Engine, session: Session
) -> list[torch.Tensor]:
    """Run an update on copies under observation.

    Args:
        optimizer: whose update made a parameter bad; not touched.
        parameters: its parameters, in order.
        engine: observes the run.
        session: the recording.

    Returns:
        The updated copies, whose values have producers; the parameters themselves if the
        update cannot be run again.
    """
    step = getattr(type(optimizer).step, "__wrapped__", type(optimizer).step)
    try:
        with engine.muted():
            twin, copies = _twin(optimizer)
        engine.record_update(copies, "parameters")
        engine.begin_update(observe=True)
        try:
            step(twin)
        finally:
            engine.end_update()
    except Exception as error:
        session.note(
            "replay",
            f"the update could not be looked at again: {type(error).__name__}: {error}",
            severity="warning",
        )
        return parameters
    session.note(
        "replay",
        "the update was run again on copies to name its op: values are of that second run",
    )
    if engine.nonfinite(copies) < 0:
        return parameters
    engine.adopt(parameters, copies)
    return copies


def _twin(optimizer: Optimizer) -> tuple[Optimizer, list[torch.Tensor]]:
    twin = copy.copy(optimizer)
    twin.__dict__.update(optimizer.__dict__)
    copies: dict[torch.Tensor, torch.Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            copied = parameter.detach().clone()
            if copied.is_floating_point():
                copied = torch.where(torch.isfinite(copied), copied, torch.zeros_like(copied))
            copied.requires_grad_(parameter.requires_grad)
            copied.grad = parameter.grad
            copies[parameter] = copied
    twin.param_groups = [
        {**group, "params": [copies[p] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    twin.state = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        if parameter in copies:
            twin.state[copies[parameter]] = {key: _copied(value) for key, value in state.items()}
    return twin, list(copies.values())


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)
