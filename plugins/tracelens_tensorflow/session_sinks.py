"""The sinks of TF1 runs: which bad value reached what, and the scalars that were fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracelens import stats
from tracelens.events import NO_ID, SLOT_BITS
from tracelens_tensorflow.session_copy import Look
from tracelens_tensorflow.session_held import as_floats, is_bad
from tracelens_tensorflow.session_plan import Plan
from tracelens_tensorflow.session_replay import Rerun

Sink = dict[str, Any]


def sink(
    kind: str, name: str, array: Any, value_id: int, step: int, outcome: Rerun | None = None
) -> Sink:
    """Return the fields of a ``sink`` event.

    Args:
        kind: ``"loss"``, ``"gradient"``, ``"parameter"`` or ``"read"``.
        name: the value's name.
        array: the value, ``None`` if it was not fetched.
        value_id: its id, -1 unknown.
        step: its step.
        outcome: of the rerun that found it, if one did.
    """
    fields: Sink = {
        "sink": kind,
        "name": name,
        "step": step,
        "op_id": value_id >> SLOT_BITS if value_id >= 0 else NO_ID,
        "value_id": value_id,
        **_described(array),
    }
    doubts = list(outcome.remarks) if outcome is not None else []
    if outcome is not None and outcome.reason:
        doubts.insert(0, f"the run could not be looked into: {outcome.reason}")
    if doubts:
        fields["doubts"] = doubts
    return fields


def of_arrays(
    plan: Plan,
    arrays: Mapping[str, Any],
    ids: Mapping[str, int],
    alarms: Sequence[int],
    step: int,
    outcome: Rerun | None = None,
) -> list[Sink]:
    """Return the sinks of a run by the arrays that are at hand, some of which may be lacking."""
    found = [plan.frontier[place] for place in alarms]
    return [
        sink(
            watched.sink,
            watched.name,
            arrays.get(watched.tensor.name),
            ids.get(watched.tensor.name, NO_ID),
            step,
            outcome,
        )
        for watched in found
    ]


def of_look(
    look: Look,
    own: Mapping[str, Any],
    ids: Mapping[str, int],
    alarms: Sequence[int],
    step: int,
    outcome: Rerun,
) -> list[Sink]:
    """Return the sinks of a run that was looked into, those of a false alarm left out.

    Args:
        look: the second run.
        own: what the program fetched in the first, by tensor name.
        ids: value ids by tensor name.
        alarms: places of the frontier that gave alarm.
        step: the run's step.
        outcome: of the rerun.
    """
    sinks = []
    for place in alarms:
        watched = look.run.plan.frontier[place]
        name = watched.tensor.name
        array = look.values.get(name)
        if is_bad(array):
            value_id = ids.get(name, NO_ID)
            sinks.append(sink(watched.sink, watched.name, array, value_id, step, outcome))
        elif is_bad(own.get(name)):
            unlike = ["running it again gave a finite value", *outcome.remarks]
            told = replace(outcome, remarks=unlike)
            sinks.append(sink(watched.sink, watched.name, own[name], NO_ID, step, told))
    return sinks


def of_variables(look: Look, ids: Mapping[Any, int], outcome: Rerun) -> list[Sink]:
    """Return the sinks of the variables that a run made bad.

    Args:
        look: the run.
        ids: ids of the values that variables hold after it.
        outcome: of the rerun.
    """
    return [
        sink("parameter", variable.name, array, ids.get(variable, NO_ID), look.run.step, outcome)
        for variable, array in look.after.items()
        if is_bad(array) and not is_bad(look.before.get(variable))
    ]


def scalars(plan: Plan, own: Sequence[Any]) -> dict[str, float]:
    """Return the scalars that a step fetched by name, the first loss as ``loss``."""
    found: dict[str, float] = {}
    losses = {watched.tensor.name for watched in plan.frontier if watched.sink == "loss"}
    for tensor, value in zip(plan.fetches, own, strict=True):
        floats = as_floats(value)
        if floats is None or floats.size != 1 or floats.dtype.kind == "c":
            continue
        name = "loss" if tensor.name in losses and "loss" not in found else tensor.op.name
        found[name] = float(floats.reshape(()))
    return found


def _described(array: Any) -> Sink:
    floats = as_floats(array)
    found = stats.measure(floats) if floats is not None else None
    if found is None:
        return {}
    return {
        "dtype": np.asarray(array).dtype.name,
        "shape": list(np.shape(array)),
        "stats": {
            "numel": found.numel,
            "nan": found.nan,
            "posinf": found.posinf,
            "neginf": found.neginf,
            "vmin": found.vmin,
            "vmax": found.vmax,
        },
        "first_bad": list(stats.first_bad(floats)),
    }
