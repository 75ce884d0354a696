"""Bad values that no op read on: what a program computed and kept, returned or dropped.

A test may neither step an optimizer nor read a number, so the sinks of a training program do not
tell whether it went well. What counts there is what was left at the end: a non-finite value that
nothing masked, overwrote or asked about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis import cause
from tracelens.analysis.context import Context
from tracelens.analysis.names import MASKS, PREDICATES, canonical
from tracelens.analysis.source import OpSource
from tracelens.analysis.verdict import scaler_handled
from tracelens.events import MAX_SLOT, SLOT_BITS, Op, OpFlag, Phase, RecordKind, TensorRecord
from tracelens.storage.decode import Records

Json = dict[str, Any]

_ASKS = frozenset(
    "isnan isinf isfinite isneginf isposinf check_numerics ne eq allclose isclose".split()
)
_SAYS_SO = re.compile(
    r"is_?nan|is_?inf|is_?finite|is_?(?:pos|neg)_?inf|equal_nan|nonfinite|non_finite|check_numerics"
    r"|(\b[\w.]+) *[!=]= *\1\b"
)
"""What a line says that asks about bad values: ``allclose`` asks too, but does not mean it."""

_INTEGERS_OUT = PREDICATES | {"argsort", "searchsorted", "bucketize", "histc", "one_hot", "isclose"}
"""Ops whose output no longer shows that they read something bad: that is not masking."""

_UNDECIDED = int(OpFlag.GARBAGE | OpFlag.VIEW)
_MAX_LEFT = 24
_MAX_ASKED = 16


def survivors(
    records: Records,
    source: OpSource,
    context: Mapping[str, Any] | None = None,
    *,
    last_step: int = 0,
) -> list[Json]:
    """Return the findings of the bad values that are left, the earliest cause first.

    A value is left if no op that made floating numbers read it: an op that read it and came out
    finite masked it, one that came out bad made another value. It is no finding if the program
    asked about it or about what came from the same op (``isfinite(loss)``), if it is a constant
    infinity of the program (a mask), or if a gradient scaler dropped it. Nor is an Inf of a
    training step that has ended: its loss and gradients were judged, this is a number beside them.

    Args:
        records: the ring's records of the window.
        source: the recorded ops, of before the window too.
        context: as ``cause.explain`` takes it.
        last_step: the step that was running at the end.

    Returns:
        Findings as ``cause.explain`` makes them, of sink ``result``, one for each first cause.
    """
    left, asked = _left(records, source)
    if not left:
        return []
    known = Context.of(context)
    dropped = {note.get("step") for note in known.notes if note.get("kind") == "overflow_handled"}
    excused = {_cause_key(_explained(source, op, tensor, context)) for op, tensor in asked}
    found: dict[tuple[Any, ...], Json] = {}
    for op, tensor in left:
        if op.step in dropped and op.phase in (Phase.BACKWARD, Phase.OPTIMIZER):
            continue
        if op.step < last_step and tensor.stats is not None and not tensor.stats.nan:
            continue
        told = _explained(source, op, tensor, context)
        first = told.get("first_cause") or {}
        harmless = told["severity"] != "error" or scaler_handled(told, known)
        if harmless or _by_design(first) or _cause_key(told) in excused:
            continue
        found.setdefault(_cause_key(told), told)
    return sorted(found.values(), key=first_op_id)


def first_op_id(told: Mapping[str, Any]) -> int:
    """Return the id of the op that a finding blames, -1 if it blames none."""
    return int((told.get("first_cause") or {}).get("op_id", -1))


def _by_design(first: Mapping[str, Any]) -> bool:
    """Tell whether a program wrote the value: an Inf as a constant, or memory it never filled."""
    origin = first.get("origin")
    return origin == "uninitialised" or (origin == "constant" and first.get("kind") == "inf")


def _explained(
    source: OpSource, op: Op, tensor: TensorRecord, context: Mapping[str, Any] | None
) -> Json:
    stats = tensor.stats
    sink: Json = {
        "sink": "result",
        "name": "",
        "step": op.step,
        "op_id": op.op_id,
        "value_id": tensor.value_id,
        "dtype": tensor.dtype or None,
        "shape": list(tensor.shape) if tensor.shape is not None else None,
        "first_bad": list(tensor.first_bad),
    }
    if stats is not None:
        counts = ("numel", "nan", "posinf", "neginf", "vmin", "vmax")
        sink["stats"] = {name: getattr(stats, name) for name in counts}
    return cause.explain(source, sink, context=context)


def _cause_key(told: Mapping[str, Any]) -> tuple[Any, ...]:
    first = told.get("first_cause") or {}
    frame = first.get("source") or {}
    return first.get("op"), first.get("phase"), frame.get("file"), frame.get("line")


def _left(
    records: Records, source: OpSource
) -> tuple[list[tuple[Op, TensorRecord]], list[tuple[Op, TensorRecord]]]:
    """Return the bad values that nothing read on, and those that the program asked about."""
    bad = _bad_values(records, source)
    if not bad:
        return [], []
    readers = _readers(records, np.fromiter(bad, dtype=np.int64, count=len(bad)))
    left: list[tuple[Op, TensorRecord]] = []
    asked: list[tuple[Op, TensorRecord]] = []
    sites: set[tuple[Any, ...]] = set()
    for value_id, (op, tensor) in bad.items():
        read = [reader for each in readers.get(value_id, ()) if (reader := source.op(each))]
        if len(asked) < _MAX_ASKED and any(_asks(reader) for reader in read):
            asked.append((op, tensor))
        if op.phase is Phase.DATA or any(_reads_on(reader) for reader in read):
            continue
        site = (op.name, op.source, op.module)
        if site not in sites and len(left) < _MAX_LEFT:
            sites.add(site)
            left.append((op, tensor))
    return left, asked


def _bad_values(records: Records, source: OpSource) -> dict[int, tuple[Op, TensorRecord]]:
    """Return the non-finite values that ops made, by id, with op and tensor, in order."""
    ops = records[records["kind"] == RecordKind.OP]
    hit = ((ops["flags"] & int(OpFlag.HIT)) != 0) & ((ops["flags"] & _UNDECIDED) == 0)
    found: dict[int, tuple[Op, TensorRecord]] = {}
    for op_id in np.sort(ops["op_id"][hit]):
        op = source.op(int(op_id))
        for tensor in op.outputs if op is not None else ():
            assert op is not None
            slot_is_its_own = tensor.value_id & MAX_SLOT < MAX_SLOT
            if (
                tensor.stats is not None
                and tensor.stats.nonfinite
                and tensor.value_id >> SLOT_BITS == op.op_id
                and slot_is_its_own
            ):
                found[tensor.value_id] = (op, tensor)
    return found


def _readers(records: Records, values: NDArray[np.int64]) -> dict[int, list[int]]:
    """Return the ids of the ops that read each of some values."""
    kinds = records["kind"]
    rows = records[(kinds == RecordKind.OP) | (kinds == RecordKind.INPUTS)]
    matches = np.isin(rows["in_ids"], values)
    found: dict[int, list[int]] = {}
    for row, column in zip(*np.nonzero(matches), strict=True):
        found.setdefault(int(rows["in_ids"][row, column]), []).append(int(rows["op_id"][row]))
    return found


def _asks(op: Op) -> bool:
    """Tell whether a line of the program asks whether a value is bad."""
    if op.source is None or canonical(op.name) not in _ASKS:
        return False
    return bool(_SAYS_SO.search(op.source.code))


def _reads_on(op: Op) -> bool:
    """Tell whether an op that read a bad value hands it on, masks it, or overwrites it."""
    name = canonical(op.name)
    if name in _INTEGERS_OUT or not (op.outputs or op.flags & OpFlag.INPLACE):
        return False
    # Unlike `relu`, which was not checked either, a mask is taken at its word.
    return bool(op.flags & (OpFlag.CHECKED | OpFlag.HIT | OpFlag.CONSTANT)) or name in MASKS
