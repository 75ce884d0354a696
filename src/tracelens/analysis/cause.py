"""Explain a sink: walk back to the first cause and say why it happened.

The result is a finding: plain JSON, the object that ``why --json``, the trace's ``finding``
events, the text report and the exceptions all show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from tracelens.analysis import describe, masks
from tracelens.analysis.context import Context
from tracelens.analysis.names import FILLS, canonical, display, framework_of
from tracelens.analysis.path import first_backward, frame_of, made_nan, path_json
from tracelens.analysis.rules import Advice, Case, advise
from tracelens.analysis.rules.vocabulary import FRAMEWORKS, Vocabulary
from tracelens.analysis.source import OpSource, producer_id, with_measured_inputs
from tracelens.analysis.state import Bad, Values, state_of_stats
from tracelens.analysis.walk import MAX_OPS, Cause, Link, Walk
from tracelens.events import NO_ID, Op, OpFlag, Phase

Json = dict[str, Any]

LOOKS = frozenset({"read", "tap", "data", "result"})
"""Sinks where a value is only looked at: a constant Inf there was put there on purpose."""

_SINK_WORDS = {
    "check": "the checked value",
    "data": "the data",
    "exception": "the exception",
    "answer": "the answer of",
    "output": "the output",
    "result": "a result",
    "tap": "the tap",
}
_PUT = FILLS | {"assign_variable_op", "assign", "identity", "read_variable_op"}
"""Ops that put a value somewhere as it is."""
_MAX_HITS = 256
_MAX_PRODUCERS = 4


def explain(
    source: OpSource, sink: Mapping[str, Any] | None, *, context: Mapping[str, Any] | None = None
) -> Json:
    """Return the finding of one sink.

    Args:
        source: the recorded ops.
        sink: a ``sink`` event; ``None`` explains the first non-finite op of all.
        context: what else is known, all optional: ``data``, ``steps`` and ``notes`` (lists of
            events of those kinds), ``max_ops`` (bound of the walk).

    Returns:
        ``rule, severity, verdict, kind, step, rank, source, message, advice, first_cause, sink,
        path, data, loss, exact, doubts``. ``severity`` is ``"error"`` for a sink that a computed
        value or bad data made non-finite and ``"info"`` for a constant that was merely looked
        at; ``first_cause`` is ``None`` only if nothing at all is known.
    """
    known = Context.of(context)
    sink = sink or {}
    values = Values(source)
    walk = Walk(source, values, max_ops=known.max_ops or MAX_OPS)
    cause = _search(source, walk, sink)
    if cause is None:
        return _unexplained(sink)
    return finding(source, values, cause, sink, known)


def finding(
    source: OpSource,
    values: Values,
    cause: Cause,
    sink: Mapping[str, Any],
    known: Context,
    *,
    masked: bool = False,
) -> Json:
    """Return the finding of a cause that a walk has found.

    Args:
        source: the recorded ops.
        values: states of values in that source.
        cause: what the walk found.
        sink: the sink event, empty for a masked value.
        known: the context.
        masked: the value reached no sink: the finding is for information.
    """
    op = cause.link.op
    forward = source.op(op.fwd_op_id) if op.fwd_op_id >= 0 else None
    frame = frame_of(source, op)
    nan_op = made_nan(cause.link)
    hidden_by = None
    if masked or (op.phase is not Phase.BACKWARD and first_backward(cause.link) is not None):
        phase = None if masked else op.phase
        hidden_by = masks.find_mask(source, op, phase=phase)
    elif op.phase is Phase.BACKWARD and forward is not None:
        hidden_by = masks.selecting_where(source, forward)
    op = with_measured_inputs(source, op)
    forward = with_measured_inputs(source, forward) if forward is not None else None
    case = Case(
        op=op,
        kind=cause.kind,
        forward=forward,
        nan_op=nan_op,
        origin=cause.origin,
        tensor=cause.tensor,
        frame=frame,
        hidden_by=hidden_by,
        sink=sink,
        losses=known.losses(op.step),
        made_by=_made_by(source, forward if op.phase is Phase.BACKWARD and forward else op),
        words=Vocabulary(_framework(cause.link, forward)),
    )
    told = advise(case)
    doubts = _doubts(cause, op, sink)
    constant_seen = cause.origin == "constant" and cause.kind is Bad.INF
    put_there = sink.get("sink") == "parameter" and _only_copied(cause.link)
    harmless = masked or (constant_seen and (sink.get("sink") in LOOKS or put_there))
    data = known.data_of(op)
    first = _first_cause(case, told, known, exact=not doubts)
    return {
        "rule": told.rule,
        "severity": "info" if harmless else "error",
        "verdict": "masked" if masked else "clean" if harmless else "non-finite",
        "kind": _word(_sink_kind(sink, cause.kind)),
        "step": describe.whole(sink, "step", op.step),
        "rank": op.rank,
        "source": first["source"],
        "message": _message(case, first, sink, masked=masked),
        "advice": told.fix,
        "first_cause": first,
        "sink": sink_json(sink, known) if sink else None,
        "path": path_json(source, case, cause.link),
        "hidden_by": describe.op_summary(hidden_by, frame_of(source, hidden_by))
        if hidden_by is not None
        else None,
        "data": known.data_json(data, cause.tensor or case.out) if data else None,
        "loss": known.finite_loss(sink),
        "exact": not doubts,
        "doubts": doubts,
    }


def _only_copied(link: Link | None) -> bool:
    """Tell whether a constant was put where it was seen, as a running best or a mask is."""
    while link is not None:
        if canonical(link.op.name) not in _PUT:
            return False
        link = link.towards_sink
    return True


def _made_by(source: OpSource, op: Op) -> list[str]:
    """Return the canonical names of the ops that wrote an op's first inputs."""
    names = []
    for tensor in op.inputs[:_MAX_PRODUCERS]:
        writer = source.op(producer_id(tensor.value_id))
        names.append(canonical(writer.name) if writer is not None else "")
    return names


def _framework(link: Link | None, forward: Op | None) -> str:
    """Return whose op a cause is; stand-ins for batches are known by the ops that read them."""
    told = {framework_of(forward.name)} if forward is not None else set()
    while link is not None:
        told.add(framework_of(link.op.name))
        link = link.towards_sink
    # A PyTorch program's own Function may be called as TensorFlow's ops are.
    return next((name for name in FRAMEWORKS if name in told), FRAMEWORKS[0])


def sink_json(sink: Mapping[str, Any], known: Context) -> Json:
    """Return a sink event as shown in a report."""
    shape = sink.get("shape")
    bad = sink.get("first_bad") or ()
    told: Json = {
        "sink": sink.get("sink"),
        "name": sink.get("name"),
        "step": sink.get("step"),
        "op_id": sink.get("op_id", NO_ID),
        "dtype": sink.get("dtype"),
        "shape": list(shape) if shape is not None else None,
        **describe.statistics(describe.stats_of_sink(sink)),
    }
    told.update(describe.where_bad(tuple(bad), shape))
    told.update({key: sink[key] for key in ("during", "request") if sink.get(key)})
    return told


def _search(source: OpSource, walk: Walk, sink: Mapping[str, Any]) -> Cause | None:
    value_id = describe.whole(sink, "value_id", NO_ID)
    kind = _sink_kind(sink, Bad.NONE)
    op = source.op(producer_id(value_id))
    if op is not None:
        return walk.run(value_id, kind or _kind_of(op))
    op = source.op(describe.whole(sink, "op_id", NO_ID)) if sink else None
    doubts: tuple[str, ...] = ()
    if value_id >= 0:
        doubts = (f"op {producer_id(value_id)}, which wrote the sink, is no longer recorded",)
    if op is None:
        step = describe.whole(sink, "step", NO_ID)
        hits = list(source.hits(step if step >= 0 else None))
        # Without a sink the first hit is asked for, with one its last hit is the closest to it.
        op = _first_blamable(source, reversed(hits) if sink else hits)
        if op is None:
            return None
        if sink:
            doubts += (f"the sink names no op: {display(op.name)}, the last bad one, was taken",)
    return walk.run_from_op(op, kind or _kind_of(op), doubts)


def _first_blamable(source: OpSource, hits: Iterable[int]) -> Op | None:
    """Return the first of some hits that is neither a constant nor uninitialised memory."""
    for hit in islice(hits, _MAX_HITS):
        op = source.op(hit)
        if op is not None and not op.flags & (OpFlag.GARBAGE | OpFlag.CONSTANT):
            return op
    return None


def _kind_of(op: Op) -> Bad:
    states = [state_of_stats(o.stats) for o in op.outputs if o.stats is not None]
    if any(state.sure & Bad.NAN for state in states) or not states:
        return Bad.NAN
    return Bad.INF


def _sink_kind(sink: Mapping[str, Any], otherwise: Bad) -> Bad:
    stats = describe.stats_of_sink(sink)
    if stats is None or not stats.nonfinite:
        return otherwise
    return Bad.NAN if stats.nan else Bad.INF


def _word(kind: Bad) -> str:
    return "inf" if kind is Bad.INF else "nan"


def _doubts(cause: Cause, op: Op, sink: Mapping[str, Any]) -> list[str]:
    told = sink.get("doubts")
    of_sink = [str(doubt) for doubt in told] if isinstance(told, (list, tuple)) else []
    doubts = list(dict.fromkeys([*of_sink, *cause.reasons]))
    if op.flags & OpFlag.INEXACT_SOURCE:
        doubts.append("the source line is the nearest known one, not certainly this op's")
    return doubts


def _first_cause(case: Case, told: Advice, known: Context, *, exact: bool) -> Json:
    op = case.op
    batch_size = known.batch_size(op.step)
    bad_data = case.origin in ("data", "outside")
    first: Json = {
        "kind": _word(case.kind),
        "op": op.name,
        "phase": "data" if bad_data else _phase(op),
        "step": op.step,
        "rank": op.rank,
        "module": op.module or (case.forward.module if case.forward else "") or None,
        "source": describe.source(case.frame),
        "inputs": [describe.tensor(t, batch_size=batch_size) for t in op.inputs],
        "outputs": [describe.tensor(t, batch_size=batch_size) for t in op.outputs],
        "why": told.why,
        "fix": told.fix,
        "exact": exact,
        "rule": told.rule,
        "origin": case.origin,
        "op_id": op.op_id,
    }
    if case.forward is not None:
        first["forward"] = describe.op_summary(case.forward, case.forward.source)
        first["forward"]["inputs"] = [
            describe.tensor(t, batch_size=batch_size) for t in case.forward.inputs
        ]
    if op.flags & OpFlag.COMPILED:
        first["compiled"] = True
    if op.flags & OpFlag.REPLAYED:
        first["replayed"] = True
    return first


def _phase(op: Op) -> str:
    """Return the phase to report; an op outside any known phase computes forward."""
    return (Phase.FORWARD if op.phase is Phase.OTHER else op.phase).label


def _message(case: Case, first: Json, sink: Mapping[str, Any], *, masked: bool) -> str:
    word = "NaN" if first["kind"] == "nan" else "Inf"
    frame = case.frame
    place = f" at {frame.file}:{frame.line}" if frame else ""
    made = f"{word} first made by {display(case.op.name)} ({first['phase']}){place}"
    if case.origin in ("data", "outside"):
        made = f"{word} came in with the data, first seen by {display(case.op.name)}{place}"
    elif case.origin == "parameter":
        made = f"{word} was already in a parameter read by {display(case.op.name)}{place}"
    if masked:
        return f"{made}; it reached no loss, gradient or parameter"
    if not sink:
        return made
    return f"{made}; it reached {sink_words(sink)}"


def sink_words(sink: Mapping[str, Any]) -> str:
    """Write a sink for a person: ``the gradient of 0.weight``."""
    during = f" during {sink['during']}" if sink.get("during") else ""
    request = f", in request {sink['request']}" if sink.get("request") else ""
    return _sink_words(sink.get("sink"), sink.get("name") or "") + during + request


def _sink_words(kind: Any, name: str) -> str:
    if kind == "gradient":
        return f"the gradient of {name}" if name else "a gradient"
    if kind == "parameter":
        return f"parameter {name}" if name else "a parameter"
    if kind == "loss":
        return "the loss" if name in ("", "loss") else f"the loss ({name})"
    if kind == "read":
        return f"a value the program read{f' ({name})' if name else ''}"
    if name == kind:
        name = ""
    words = _SINK_WORDS.get(str(kind))
    return f"{words} {name}".strip() if words else f"{kind} {name}".strip()


def _unexplained(sink: Mapping[str, Any]) -> Json:
    kind = _word(_sink_kind(sink, Bad.NAN))
    message = (
        f"{'NaN' if kind == 'nan' else 'Inf'} in {sink_words(sink)}, but no recorded op holds one"
        if sink
        else "no non-finite value was recorded"
    )
    return {
        "rule": "not-recorded",
        "severity": "error" if sink else "info",
        "verdict": "non-finite" if sink else "clean",
        "kind": kind,
        "step": sink.get("step"),
        "rank": 0,
        "source": None,
        "message": message,
        "advice": 'record more of the run: start earlier, or use capture="ops"',
        "first_cause": None,
        "sink": sink_json(sink, Context()) if sink else None,
        "path": [],
        "hidden_by": None,
        "data": None,
        "loss": None,
        "exact": False,
        "doubts": ["no op that leads to it was recorded"],
    }
