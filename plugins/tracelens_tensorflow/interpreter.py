"""Runs a FuncGraph op by op in the eager runtime, into calls, loops and branches.

Functions marked for XLA are run un-compiled. Whoever listens is told of each op with its inputs
and outputs; values of chosen ops can be given instead of computed, and ops with side effects
left out, so that a graph can be run again without applying anything twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context, core

from tracelens_tensorflow.plans import (
    CALL,
    CASE,
    CONST,
    IF,
    RUN,
    WHILE,
    Instruction,
    NotInterpretable,
    Plan,
    constant_of,
    plan_of,
)

__all__ = ["Frames", "Interpreter", "NotInterpretable", "run"]

OnOp = Callable[[tf.Operation, list[Any], list[Any]], None]
"""Called after each op: the graph's op, its input and its output tensors, all eager."""

_HEARD = (RUN, CONST)

MAX_DEPTH = 100
"""Nested calls that are entered; what lies deeper runs as one op."""


class Frames(Protocol):
    """Told when the interpreter enters and leaves a graph of its own."""

    def enter(self, op: tf.Operation, iteration: int) -> None:
        """A callee, a branch (iteration 0), a loop's condition or body (from 0) begins."""

    def leave(self, op: tf.Operation) -> None:
        """It ended."""


class Interpreter:
    """Runs graphs op by op.

    Args:
        on_op: told of each op that ran or was given values.
        overrides: outputs of ops that must not run, by op; a callable is asked each time for
            the outputs, and may return ``None`` to let the op run.
        skip: types of ops that are left out; only ops without outputs can be.
        frames: told of the graphs that are entered.
    """

    def __init__(
        self,
        on_op: OnOp | None = None,
        overrides: Mapping[tf.Operation, Any] | None = None,
        *,
        skip: frozenset[str] = frozenset(),
        frames: Frames | None = None,
    ) -> None:
        self._on_op = on_op
        self._overrides = {id(op): value for op, value in (overrides or {}).items()}
        self._skip = skip
        self._frames = frames
        self._depth = 0

    def run(self, graph: Any, args: Sequence[Any], n_outputs: int | None = None) -> list[Any]:
        """Run a graph.

        Args:
            graph: a FuncGraph.
            args: eager tensors for its inputs, captures included.
            n_outputs: how many of its outputs are wanted, from the first; all by default.

        Returns:
            Its outputs, flat.

        Raises:
            NotInterpretable: it cannot be run op by op.
            ValueError: the number of arguments is wrong.
        """
        # A graph may have been given further captures after a function was made from it.
        if len(args) > len(graph.inputs) or (len(args) < len(graph.inputs) and not n_outputs):
            raise ValueError(f"the graph takes {len(graph.inputs)} tensors, {len(args)} given")
        with context.eager_mode():
            context.ensure_initialized()
            return self._run(plan_of(graph, n_outputs), args)

    def _run(self, plan: Plan, args: Sequence[Any]) -> list[Any]:
        frame = plan.frame.copy()
        frame[: len(args)] = args
        ctx = context.context()
        handle, default_device = ctx._handle, ctx.device_name
        execute = pywrap_tfe.TFE_Py_Execute
        on_op, overrides, skip = self._on_op, self._overrides, self._skip
        for instruction in plan.instructions:
            kind, op, op_type, places, attrs, count, base, device, dead, _ = instruction
            inputs = [frame[place] for place in places]
            if overrides and id(op) in overrides:
                outputs = self._given(instruction, inputs)
            elif kind == RUN:
                if op_type in skip:
                    outputs = self._left_out(instruction)
                else:
                    try:
                        outputs = execute(
                            handle, device or default_device, op_type, inputs, attrs, count
                        )
                    except Exception as error:
                        raise _told(error, op) from None
            else:
                outputs = self._structured(plan, instruction, inputs)
            if count == 1:
                frame[base] = outputs[0]
            elif count:
                frame[base : base + count] = outputs
            if on_op is not None and kind in _HEARD:
                on_op(op, inputs, outputs)
            for place in dead:
                frame[place] = None
        return [frame[place] for place in plan.outputs]

    def _given(self, instruction: Instruction, inputs: list[Any]) -> list[Any]:
        value = self._overrides[id(instruction.op)]
        if callable(value):
            value = value()
        if value is not None:
            return list(value)
        if instruction.op_type in self._skip:
            return self._left_out(instruction)
        ctx = context.context()
        try:
            return pywrap_tfe.TFE_Py_Execute(
                ctx._handle, instruction.device or ctx.device_name, instruction.op_type, inputs,
                instruction.attrs, instruction.n_outputs,
            )  # fmt: skip
        except Exception as error:
            raise _told(error, instruction.op) from None

    def _left_out(self, instruction: Instruction) -> list[Any]:
        if instruction.n_outputs:
            op = instruction.op
            raise NotInterpretable(f"what {op.type} ({op.name}) put out was not kept")
        return []

    def _structured(self, plan: Plan, instruction: Instruction, inputs: list[Any]) -> list[Any]:
        kind, op, names = instruction.kind, instruction.op, instruction.graphs
        if kind == CONST:
            return [constant_of(op)]
        if kind == WHILE:
            body = plan.callee(names[1], instruction.n_outputs)
            return self._loop(plan.callee(names[0], 1), body, op, inputs)
        if kind == CALL:
            if self._depth >= MAX_DEPTH:
                return _call_whole(names[0], inputs, instruction.n_outputs)
            return self._enter(plan.callee(names[0], instruction.n_outputs), op, inputs, 0)
        if kind == IF:
            branch = 0 if _truth(inputs[0]) else 1
        else:
            assert kind == CASE
            branch = int(inputs[0]._numpy())
            if not 0 <= branch < len(names):
                branch = len(names) - 1
        callee = plan.callee(names[branch], instruction.n_outputs)
        return self._enter(callee, op, inputs[1:], 0)

    def _loop(self, condition: Plan, body: Plan, op: tf.Operation, values: list[Any]) -> list[Any]:
        iteration = 0
        while _truth(self._enter(condition, op, values, iteration)[0]):
            values = self._enter(body, op, values, iteration)
            iteration += 1
        return values

    def _enter(self, plan: Plan, op: tf.Operation, args: list[Any], iteration: int) -> list[Any]:
        self._depth += 1
        if self._frames is not None:
            self._frames.enter(op, iteration)
        try:
            return self._run(plan, args)
        finally:
            self._depth -= 1
            if self._frames is not None:
                self._frames.leave(op)


def run(
    graph: Any,
    args: Sequence[Any],
    on_op: OnOp | None = None,
    overrides: Mapping[tf.Operation, Any] | None = None,
) -> list[Any]:
    """Run a FuncGraph op by op with all its side effects, as a call of it would.

    Args:
        graph: the graph.
        args: eager tensors for its inputs, captures included.
        on_op: called after each op with the op, its inputs and its outputs.
        overrides: outputs of ops that must not run.

    Returns:
        Its outputs, flat.

    Raises:
        NotInterpretable: the graph cannot be run op by op.
    """
    return Interpreter(on_op, overrides).run(graph, args)


def _call_whole(name: str, inputs: Sequence[Any], n_outputs: int) -> list[Any]:
    """Call a function of the runtime as one op, compiled if it is marked so."""
    outputs = context.context().call_function(name.encode(), list(inputs), n_outputs)
    return list(outputs or ())


def _truth(tensor: Any) -> bool:
    """Return what a loop or a branch takes a tensor for: scalars by value, others by size."""
    value = tensor._numpy()
    if getattr(value, "ndim", 0):
        return bool(value.size)
    return bool(value)


def _told(error: Exception, op: tf.Operation) -> Exception:
    """Return an error of the runtime with the name of the graph's op."""
    if isinstance(error, core._NotOkStatusException):
        error = core._status_to_exception(error)
    if isinstance(error, tf.errors.OpError):
        message = f"{error.message} [graph op {op.name} of type {op.type}]"
        return type(error)(error.node_def, error.op, message)
    return error
