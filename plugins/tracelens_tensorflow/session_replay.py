"""Runs a bad `Session.run` again, in a session and a graph of its own.

The copy holds the ops of the runs since the variables were last kept. It is given those
variables, repeats the runs up to the bad one from the feeds and batches they had, and fetches
every float tensor of that one. The program's own session is only read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracelens import stats
from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.session_copy import Copy, Look
from tracelens_tensorflow.session_held import as_floats
from tracelens_tensorflow.session_history import Run
from tracelens_tensorflow.session_loops import look_into_loops
from tracelens_tensorflow.session_plan import Plan


@dataclass
class Rerun:
    """What came of running runs again.

    Attributes:
        looks: the runs that were looked into, in order.
        reason: why it could not be done; empty if it was.
        remarks: what a reader must know to trust it.
        runs: how many runs were repeated.
        duration_ns: how long it took.
    """

    looks: list[Look] = field(default_factory=list)
    reason: str = ""
    remarks: list[str] = field(default_factory=list)
    runs: int = 0
    duration_ns: int = 0


def rerun(
    session: Any,
    run: Run | None,
    earlier: Sequence[Run],
    variables: Mapping[Any, Any],
) -> Rerun:
    """Repeat a run, and before it the one that made a variable bad, if one did.

    Args:
        session: the program's session; its configuration is used.
        run: the run to look into; ``None`` looks only for an update that made a variable bad.
        earlier: runs to repeat before it, oldest first.
        variables: values to begin with, by variable op.
    """
    began = time.monotonic_ns()
    runs = [*earlier, *([run] if run is not None else [])]
    result = Rerun(remarks=list(dict.fromkeys(r for each in runs for r in each.remarks)))
    for each in runs:
        result.reason = _obstacle(each.plan, variables)
        if result.reason:
            return result
        for op in each.plan.loose_sources:
            result.remarks.append(f"{op.name} ({op.type}) within control flow was drawn again")
    copy = Copy(session, [each.plan for each in runs])
    try:
        copy.set_variables(variables)
        for each in earlier:
            before = copy.read(variables)
            copy.repeat(each)
            if _is_bad(copy.read(variables)) and not _is_bad(before):
                copy.set_variables(before)
                result.looks.append(copy.look_into(each))
        if run is not None:
            result.looks.append(copy.look_into(run))
    finally:
        copy.close()
    for look in result.looks:
        look_into_loops(session, look)
    result.runs = len(runs)
    result.duration_ns = time.monotonic_ns() - began
    return result


def _obstacle(plan: Plan, variables: Mapping[Any, Any]) -> str:
    """Return why a run cannot be repeated, empty if it can."""
    for variable in plan.variables:
        if variable not in variables and _is_read(plan, variable):
            return f"the value of variable {variable.name} before it is not known"
    for op in plan.loose_sources:
        if kinds.calls_python(op):
            return f"{op.name} calls a Python function within control flow"
    return ""


def _is_bad(values: Mapping[Any, Any]) -> bool:
    arrays = (as_floats(array) for array in values.values())
    return stats.first_nonfinite([array for array in arrays if array is not None]) >= 0


def _is_read(plan: Plan, variable: Any) -> bool:
    """Tell whether a plan depends on a variable's old value."""
    for op in plan.ops:
        uses = any(kinds.is_handle(t) and kinds.variable_of(t) is variable for t in op.inputs)
        if uses and not kinds.is_set(op):
            return True
    return False
