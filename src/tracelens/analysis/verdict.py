"""The verdict on a trace: what ``tracelens why --json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from time import monotonic
from typing import Any

from tracelens.analysis import cause
from tracelens.analysis.context import Context
from tracelens.analysis.describe import whole
from tracelens.analysis.names import FILLS, canonical
from tracelens.analysis.path import frame_of
from tracelens.analysis.source import OpSource
from tracelens.analysis.state import Bad, Values, state_of_stats
from tracelens.analysis.walk import Cause, Link, hands_over, looks_like_mask
from tracelens.events import STRUCTURAL, Op, OpFlag, Phase

Json = dict[str, Any]
Event = Mapping[str, Any]

SHORT = ("rule", "severity", "source", "message", "advice", "step")
_MAX_SINKS = 32
_MAX_HITS = 4096
_PATIENCE_S = 0.3
_STRETCH = 256
_ALWAYS = 8
_MAX_MASKED = 8


def verdict(
    source: OpSource, events: Iterable[Event], trace_info: Mapping[str, Any] | None = None
) -> Json:
    """Return the verdict on a recording.

    Args:
        source: the recorded ops.
        events: the trace's events, dicts with the kind under ``"t"``.
        trace_info: what the caller wants under ``"trace"`` (path, state, framework).

    Returns:
        ``{"verdict": "non-finite"|"masked"|"clean", "first_cause", "sink", "path", "findings",
        "trace"}`` and, of the finding shown, ``data``, ``hidden_by``, ``exact``, ``doubts``.
        Stored findings are used as they are; a run that was killed before it could explain its
        sinks is explained now, from the sinks or else from the ops that were hit.
    """
    all_events = list(events)
    known = Context.of_events(all_events)
    found = [dict(event) for event in all_events if is_finding(event)]
    sinks = [event for event in all_events if event.get("t") == "sink"]
    if not any(each.get("severity") == "error" for each in found):
        found += _explain_sinks(source, sinks or list(_implied_sinks(source, known)), known)
    found = [each for each in found if not scaler_handled(each, known)]
    real = [each for each in found if each.get("severity") == "error"]
    told = "non-finite" if real else "clean"
    if not real:
        found = [each for each in found if each.get("verdict") == "masked"]
        found = found or list(_masked(source, known))
        told = "masked" if found else "clean"
    shown = min(real or found, key=_when, default=None)
    rest = [each for each in found if each is not shown]
    return {
        "verdict": told,
        "first_cause": shown.get("first_cause") if shown else None,
        "sink": shown.get("sink") if shown else None,
        "path": shown.get("path", []) if shown else [],
        "findings": [
            {key: each.get(key) for key in SHORT} for each in ([shown] if shown else []) + rest
        ],
        "data": shown.get("data") if shown else None,
        "loss": shown.get("loss") if shown else None,
        "hidden_by": shown.get("hidden_by") if shown else None,
        "exact": bool(shown.get("exact", False)) if shown else True,
        "doubts": shown.get("doubts", []) if shown else [],
        "trace": dict(trace_info or {}),
    }


def is_finding(event: Event) -> bool:
    """Tell whether an event is a finding about values that can be shown."""
    first = event.get("first_cause")
    frames = [event.get("source"), first.get("source") if isinstance(first, Mapping) else None]
    path = event.get("path", [])
    return (
        event.get("t") == "finding"
        and event.get("verdict") != STRUCTURAL
        and (first is None or (isinstance(first, Mapping) and _is_cause(first)))
        and all(frame is None or _is_frame(frame) for frame in frames)
        and isinstance(path, list)
        and all(isinstance(entry, Mapping) for entry in path)
        and all(_is_frame(entry["source"]) for entry in path if entry.get("source") is not None)
        and isinstance(event.get("step", 0), int | None)
        and all(isinstance(event.get(key), Mapping | None) for key in ("sink", "data", "hidden_by"))
        and _is_data(event.get("data") or {})
    )


def _is_cause(first: Event) -> bool:
    """Tell whether a stored first cause has what reports rely on: a trace may say anything."""
    tensors = [first.get(key) or [] for key in ("inputs", "outputs")]
    return (
        all(isinstance(first.get(key), str) for key in ("op", "phase", "why"))
        and all(isinstance(first.get(key), str | None) for key in ("module", "fix", "kind"))
        and all(isinstance(first.get(key), int | None) for key in ("step", "rank", "op_id"))
        and all(isinstance(each, list) for each in tensors)
        and all(isinstance(tensor, Mapping) for each in tensors for tensor in each)
    )


def _is_data(data: Event) -> bool:
    return all(isinstance(data.get(key), list | None) for key in ("samples", "sample_indices"))


def _is_frame(frame: Any) -> bool:
    return (
        isinstance(frame, Mapping)
        and isinstance(frame.get("file"), str)
        and isinstance(frame.get("line"), int)
    )


def scaler_handled(finding: Mapping[str, Any], known: Context) -> bool:
    """Tell whether a gradient scaler expected and skipped this overflow.

    Scaling acts on the loss and what follows it, so a cause in the forward pass or the data is
    real even in a step that the scaler skipped.
    """
    steps = {note.get("step") for note in known.notes if note.get("kind") == "overflow_handled"}
    if finding.get("step") not in steps:
        return False
    first = finding.get("first_cause") or {}
    frame = first.get("source") or {}
    scaled = canonical(str(first.get("op", ""))) == "mul" and ".scale(" in str(frame.get("code"))
    sink = finding.get("sink") or {}
    if sink.get("sink") == "parameter":
        return False
    return scaled or first.get("phase") in (None, "backward", "optimizer")


def _hit_ops(source: OpSource) -> Iterable[Op]:
    """Yield ops with a non-finite output, from the first on, for as long as that is affordable.

    On disk each stretch of ops costs a query, so a long trace with a mask in every step is looked
    at only in its beginning; memory is looked at whole.
    """
    until = monotonic() + _PATIENCE_S
    stretches: set[int] = set()
    for op_id in islice(source.hits(None), _MAX_HITS):
        stretches.add(op_id // _STRETCH)
        if len(stretches) > _ALWAYS and monotonic() > until:
            return
        op = source.op(op_id)
        if op is not None:
            yield op


def _implied_sinks(source: OpSource, known: Context) -> Iterable[Json]:
    """Yield the sinks that a run killed within a step had no time to report.

    A NaN that an optimizer op wrote in place is in a parameter or in the optimizer's state; a NaN
    in the backward pass of a step that never ended was on its way there.
    """
    finished = {event.get("step") for event in known.steps}
    for op in _hit_ops(source):
        output = next((o for o in op.outputs if o.stats is not None and o.stats.nan), None)
        written = op.phase is Phase.OPTIMIZER and bool(op.flags & OpFlag.INPLACE)
        pending = op.phase is Phase.BACKWARD and op.step not in finished
        if output is None or output.stats is None or not (written or pending):
            continue
        yield {
            "sink": "parameter" if written else "gradient",
            "name": "",
            "step": op.step,
            "op_id": op.op_id,
            "value_id": output.value_id,
            "dtype": output.dtype or None,
            "shape": list(output.shape) if output.shape is not None else None,
            "stats": {
                "numel": output.stats.numel,
                "nan": output.stats.nan,
                "posinf": output.stats.posinf,
                "neginf": output.stats.neginf,
            },
            "first_bad": list(output.first_bad),
            "t_ns": op.start_ns,
        }


def _explain_sinks(source: OpSource, sinks: list[Event], known: Context) -> list[Json]:
    """Explain sinks in order until one is real; the rest of its step are its echoes."""
    context = {"data": known.data, "steps": known.steps, "notes": known.notes}
    found = []
    ordered = sorted(sinks, key=lambda sink: (whole(sink, "step", 0), whole(sink, "t_ns", 0)))
    for sink in islice(ordered, _MAX_SINKS):
        told = cause.explain(source, sink, context=context)
        found.append(told)
        if told["severity"] == "error" and not scaler_handled(told, known):
            break
    return found


def _masked(source: OpSource, known: Context) -> Iterable[Json]:
    """Yield the places that made a non-finite value which reached no sink."""
    values = Values(source)
    handled = {note.get("step") for note in known.notes if note.get("kind") == "overflow_handled"}
    overflowed: set[int] = set()
    places: set[tuple[Any, ...]] = set()
    for op in _hit_ops(source):
        if op.step in handled and op.phase in (Phase.BACKWARD, Phase.OPTIMIZER):
            overflowed.add(op.step)
        if op.step in overflowed:  # what the program does with gradients that the scaler drops
            continue
        kind = origin_kind(values, op)
        if kind is Bad.NONE:
            continue
        frame = frame_of(source, op)
        place = (frame.file, frame.line) if frame else (op.name, op.module)
        if place in places:
            continue
        places.add(place)
        found = Cause("data" if hands_over(op) else "op", kind, Link(op, -1, kind, None), None)
        yield cause.finding(source, values, found, {}, known, masked=True)
        if len(places) >= _MAX_MASKED:
            return


def origin_kind(values: Values, op: Op) -> Bad:
    """Return the kind of non-finite value an op is the origin of, ``NONE`` if it is not one."""
    if op.flags & OpFlag.GARBAGE:
        return Bad.NONE
    made = Bad.NONE
    for output in op.outputs:
        if output.stats is None or (hands_over(op) and looks_like_mask(output.stats)):
            continue
        made |= state_of_stats(output.stats).sure
    if op.flags & OpFlag.CONSTANT:
        made = Bad.NONE if canonical(op.name) in FILLS else made & Bad.NAN
    had = Bad.NONE
    for tensor in op.inputs:
        had |= values.of_input(tensor).possible
    if made & Bad.NAN and not had & Bad.NAN:
        return Bad.NAN
    if made & Bad.INF and not had:
        return Bad.INF
    return Bad.NONE


def _when(finding: Mapping[str, Any]) -> tuple[int, int]:
    first = finding.get("first_cause") or {}
    return whole(finding, "step", 0), whole(first, "op_id", 0)
