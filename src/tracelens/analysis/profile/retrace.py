"""What compiling and tracing again cost, step by step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.columns import Columns, durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Intervals, union

_COMPILING = re.compile(
    r"\(dynamo_timed\)$|^(cu|hip)ModuleLoad(Data(Ex)?)?$|XlaCompile|^nvrtcCompileProgram$"
)
_RULES = ("retrace", "recompile")


@dataclass(frozen=True, slots=True)
class StepRetrace(Answer):
    """What compiling cost in one step.

    Attributes:
        step: its number.
        retraces: functions traced or compiled again, as the recording told.
        compile_ns: time in it during which something compiled, as far as it was recorded, or what
            the findings say that tracing took, whichever is more.
        excess_ns: by how much the step was longer than the median of the steps without retraces.
        causes: messages of the findings, at most three.
    """

    step: int
    retraces: int
    compile_ns: int
    excess_ns: int
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RetraceAnswer(Answer):
    """Retraces of a run.

    Attributes:
        steps: those in which something was traced or compiled.
        retraces: how many in all.
        compile_ns: compile time of all steps.
        cost_ns: for each such step the compile time, or the excess where that is longer; summed.
    """

    steps: tuple[StepRetrace, ...]
    retraces: int
    compile_ns: int
    cost_ns: int


def retraces(data: ProfileData) -> RetraceAnswer | None:
    """Tell what tracing and compiling again cost; ``None`` if nothing of it was recorded.

    Sources: findings ``retrace`` and ``recompile`` of the recording, and ops and spans that compile
    (torch's ``… (dynamo_timed)``, TensorFlow's function tracing and XLA compilation, the driver's
    module loading). Warm-up counts like any other step.
    """
    steps = data.steps
    told = _told(data)
    compiling = _compiling(data, data.ops) | _compiling(data, data.spans)
    inside = compiling.within(steps.start_ns, steps.end_ns)
    if not told and not compiling.total:
        return None
    retraced = np.array([bool(told.get(int(s))) for s in steps.step]) | (inside > 0)
    calm = steps.duration_ns[~retraced]
    usual = int(np.median(calm)) if steps.marked and len(calm) else None
    found = []
    for at in np.flatnonzero(retraced):
        events = told.get(int(steps.step[at]), [])
        excess = max(int(steps.duration_ns[at]) - usual, 0) if usual is not None else 0
        causes = tuple(str(event.get("message", "")) for event in events[:3])
        said = sum(
            length for event in events if isinstance(length := event.get("duration_ns"), int)
        )
        compile_ns = max(int(inside[at]), said)
        found.append(StepRetrace(int(steps.step[at]), len(events), compile_ns, excess, causes))
    return RetraceAnswer(
        tuple(found),
        sum(len(events) for events in told.values()),
        sum(step.compile_ns for step in found),
        sum(max(step.compile_ns, step.excess_ns) for step in found),
    )


def _told(data: ProfileData) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    first, end = data.selected or (None, None)
    for event in data.reader.findings(rank=data.rank):
        step = event.get("step")
        if event.get("rule") not in _RULES or not isinstance(step, int):
            continue
        if (first is None or step >= first) and (end is None or step < end):
            found.setdefault(step, []).append(event)
    return found


def _compiling(data: ProfileData, columns: Columns) -> Intervals:
    mask = columns.where("name", [bool(_COMPILING.search(t)) for t in columns.texts("name")])
    starts = columns.ints("start_ns")[mask]
    return union(starts, starts + durations(columns)[mask])
