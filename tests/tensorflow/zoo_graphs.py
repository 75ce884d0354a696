"""The zoo's oracle for Sessions: fetches everything that the fetches depend on."""

from __future__ import annotations

import sys
from typing import Any

import tensorflow as tf
from zoo_walk import FILLS, Seen, Verdict, count, judged, zoo_line

READS = {"ReadVariableOp", "VariableV2"}


class Graphs:
    """Fetches everything that a Session's fetches depend on, and judges the first bad run."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.step = 0

    def run(self, plain: Any) -> Any:
        def wrapped(session: Any, fetches: Any, feed_dict: Any = None, **options: Any) -> Any:
            wanted = [f for f in tf.nest.flatten(fetches) if hasattr(f, "graph")]
            needed = ancestors([getattr(f, "op", f) for f in wanted])
            fed = {getattr(key, "name", key) for key in feed_dict or {}}
            more = {
                t.name: t
                for op in needed
                for t in op.outputs
                if t.dtype.is_floating
                and not t.dtype._is_ref_dtype
                and session.graph.is_fetchable(t)
            }
            told, values = plain(session, [fetches, more], feed_dict=feed_dict, **options)
            if self.verdict is None:
                self.judge(needed, values, [f.name for f in wanted], fed)
            self.step += any("Apply" in op.type for op in needed)
            return told

        return wrapped

    def judge(self, needed: list[Any], values: Any, wanted: list[str], fed: set[str]) -> None:
        seen: list[Seen] = []
        index: dict[str, int] = {}
        for op in needed:
            first = op._original_op if op._original_op is not None else op
            line, phase = graph_line(first), "forward" if first is op else "backward"
            if "Apply" in op.type:
                phase = "optimizer"
            each = Seen(len(seen), op.type, line, phase, constant=op.type in FILLS)
            each.inputs = [
                (count(values[t.name]), index.get(t.op.name, -1))
                for t in op.inputs
                if t.name in values
            ]
            each.outputs = [count(values[t.name]) for t in op.outputs if t.name in values]
            index[op.name] = each.index
            if any(t.name in fed for t in op.outputs):
                each.line, each.phase = calling_line(), "data"
            seen.append(each)
        updates = [op for op in seen if op.phase == "optimizer"]
        reached = [("read", seen[index[n.split(":")[0]]]) for n in wanted if n in values]
        grads = [("gradient", seen[p]) for op in updates for c, p in op.inputs if c.bad and p >= 0]
        sink = next(((name, op) for name, op in [*reached, *grads] if op.bad), None)
        if sink is None:
            return
        counts = next(c for c in sink[1].outputs if c.bad)
        told = judged(seen, (sink[0], sink[1].index, counts, self.step))
        if told is not None and told.op in READS:  # bad since the update of the run before
            update = next(op for op in updates if "Apply" in op.name)
            told = Verdict(
                "parameter", update.name, update.line, told.kind, "optimizer", told.step - 1
            )
        self.verdict = told


def ancestors(wanted: list[Any]) -> list[Any]:
    """Everything the ops depend on, each after its inputs."""
    order: list[Any] = []
    state: dict[str, int] = {}
    stack = list(wanted)
    while stack:
        op = stack[-1]
        if state.get(op.name) == 1:
            state[op.name] = 2
            order.append(op)
        before = [*(t.op for t in op.inputs), *op.control_inputs]
        fresh = [] if op.name in state else [o for o in before if o.name not in state]
        if state.setdefault(op.name, 1) == 2:
            stack.pop()
        stack += fresh
    return order


def graph_line(op: Any) -> str:
    lines = [zoo_line(f.filename, f.lineno) for f in op.traceback]
    return next((line for line in reversed(lines) if line), "")


def calling_line() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None:
        line = zoo_line(frame.f_code.co_filename, frame.f_lineno)
        if line:
            return line
        frame = frame.f_back
    return ""
