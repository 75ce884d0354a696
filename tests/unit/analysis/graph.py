"""A recording written by hand: the ops a test needs, one call each.

>>> g = Graph()
>>> x = g.op("aten::mm", g.outside(), g.outside())
>>> y = g.op("aten::log", x, neginf=3)
>>> g.explain(g.sink("loss", y))["first_cause"]["op"]
'aten::log'
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tracelens.analysis.cause import explain
from tracelens.analysis.verdict import verdict
from tracelens.events import NO_ID, Op, OpFlag, Phase, Source, Stats, TensorRecord

FORWARD, BACKWARD, OPTIMIZER, DATA = (
    Phase.FORWARD,
    Phase.BACKWARD,
    Phase.OPTIMIZER,
    Phase.DATA,
)


_NO_FLAGS = OpFlag(0)


@dataclass(frozen=True)
class Value:
    """What an op put out, as later ops and sinks see it."""

    record: TensorRecord

    @property
    def op_id(self) -> int:
        return self.record.value_id >> 4 if self.record.value_id >= 0 else NO_ID


class Graph:
    """An ``OpSource`` built op by op; every op has its own source line."""

    def __init__(self) -> None:
        self.ops: dict[int, Op] = {}
        self.events: list[dict[str, Any]] = []
        self.looked_up = 0
        self.step = 0

    # The OpSource side.

    def op_of(self, value: Value) -> Op:
        return self.ops[value.op_id]

    def hits(self, step: int | None = None) -> Iterable[int]:
        return [
            op.op_id
            for op in self.ops.values()
            if op.flags & OpFlag.HIT and step in (None, op.step)
        ]

    # Building.

    def outside(
        self,
        *,
        nan: int = 0,
        posinf: int = 0,
        neginf: int = 0,
        vmin: float | None = -1.0,
        vmax: float | None = 1.0,
        parameter: bool = False,
        shape: tuple[int, ...] = (4, 8),
        dtype: str = "float32",
    ) -> Value:
        """A tensor that no recorded op wrote."""
        return Value(_record(NO_ID, shape, dtype, nan, posinf, neginf, vmin, vmax, None, parameter))

    def __call__(self, name: str, *inputs: Value, **about: Any) -> Value:
        return self.add(name, *inputs, **about)

    def add(
        self,
        name: str,
        *inputs: Value,
        nan: int = 0,
        posinf: int = 0,
        neginf: int = 0,
        vmin: float | None = -1.0,
        vmax: float | None = 1.0,
        zero: int | None = None,
        shape: tuple[int, ...] = (4, 8),
        dtype: str = "float32",
        phase: Phase = FORWARD,
        flags: OpFlag = _NO_FLAGS,
        of: Value | None = None,
        checked: bool | None = None,
        measured: bool | None = None,
        module: str = "",
        code: str = "",
        source: bool = True,
        outputs: int = 1,
        first_bad: tuple[int, ...] = (),
    ) -> Value:
        """Record an op; one with bad counts is a hit whose inputs were measured.

        Args:
            of: the output of the forward op, for a backward op.
            checked: its output was checked (default: unless it is harmless).
            measured: its inputs carry statistics (default: on a hit).
        """
        op_id = len(self.ops)
        hit = bool(nan or posinf or neginf)
        if flags & OpFlag.GARBAGE:
            checked = False
        if checked is None:
            checked = not flags & OpFlag.HARMLESS
        if checked:
            flags |= OpFlag.CHECKED | (OpFlag.HIT if hit else OpFlag(0))
        measured = bool(checked and hit) if measured is None else measured
        out = _record(op_id * 16, shape, dtype, nan, posinf, neginf, vmin, vmax, zero, False)
        if first_bad:
            out = replace(out, first_bad=first_bad)
        told = out if checked and hit else replace(out, stats=None, first_bad=())
        ins = [v.record if measured else replace(v.record, stats=None) for v in inputs]
        if flags & OpFlag.INPLACE and measured and ins:
            ins[0] = replace(ins[0], stats=out.stats, overwritten=True)
        rest = [replace(told, value_id=op_id * 16 + slot, stats=None) for slot in range(1, outputs)]
        self.ops[op_id] = Op(
            op_id=op_id,
            name=name,
            phase=phase,
            step=self.step,
            inputs=tuple(ins),
            outputs=(told, *rest),
            flags=flags,
            module=module,
            source=Source("train.py", 10 + op_id, "step", code or name) if source else None,
            fwd_op_id=of.op_id if of else NO_ID,
        )
        return Value(out)

    def slot(self, value: Value, slot: int) -> Value:
        """Another output of the op that wrote a value."""
        op = self.op_of(value)
        return Value(op.outputs[slot])

    def seen(self, value: Value, *, nan: int = 0, posinf: int = 0) -> Value:
        """The same value, as its reader measures it to be (its producer may not have)."""
        stats = Stats(32, nan, posinf, 0, None, -1.0, 1.0)
        return Value(replace(value.record, stats=stats))

    def sink(self, kind: str, value: Value, name: str = "", **about: Any) -> dict[str, Any]:
        """A sink event that saw the value; it is kept among the events."""
        record = value.record
        stats = record.stats or Stats(1, 1, 0, 0)
        event = {
            "t": "sink",
            "sink": kind,
            "name": name or kind,
            "step": self.step,
            "op_id": value.op_id,
            "value_id": record.value_id,
            "dtype": record.dtype,
            "shape": list(record.shape or ()),
            "stats": {
                "numel": stats.numel,
                "nan": stats.nan,
                "posinf": stats.posinf,
                "neginf": stats.neginf,
                "vmin": stats.vmin,
                "vmax": stats.vmax,
            },
            "first_bad": list(record.first_bad),
            "t_ns": len(self.events),
            **about,
        }
        self.events.append(event)
        return event

    def op(self, op_id_or_name: Any, *inputs: Value, **about: Any) -> Any:
        """Look an op up by its id, or record one by its name."""
        if isinstance(op_id_or_name, str):
            return self.add(op_id_or_name, *inputs, **about)
        self.looked_up += 1
        return self.ops.get(op_id_or_name)

    def forget(self, *values: Value) -> None:
        """Lose the records of ops, as a ring does that was written over."""
        for value in values:
            del self.ops[value.op_id]

    # Asking.

    def explain(self, sink: dict[str, Any] | None, **context: Any) -> dict[str, Any]:
        return explain(self, sink, context=context)

    def verdict(self) -> dict[str, Any]:
        return verdict(self, self.events, {"path": "test"})

    def line(self, value: Value) -> int:
        source = self.op_of(value).source
        assert source is not None
        return source.line


def _record(
    value_id: int,
    shape: tuple[int, ...],
    dtype: str,
    nan: int,
    posinf: int,
    neginf: int,
    vmin: float | None,
    vmax: float | None,
    zero: int | None,
    parameter: bool,
) -> TensorRecord:
    numel = 1
    for size in shape:
        numel *= size
    stats = Stats(numel, nan, posinf, neginf, zero, vmin, vmax)
    return TensorRecord(value_id, dtype, shape, "cpu", stats, parameter=parameter)
