"""Looks into the functions that ops of a TF1 graph run: bodies of loops, branches, calls.

A session hands over what such an op was given and gave; what went on inside is found by running
the function again op by op in the eager runtime, with copies of the variables it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context
from tensorflow.python.framework import dtypes
from tensorflow.python.ops import gen_resource_variable_ops

from tracelens.events import OpFlag
from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.effects import effects_of
from tracelens_tensorflow.interpreter import Interpreter, NotInterpretable
from tracelens_tensorflow.optables import BRANCHES, LOOPS
from tracelens_tensorflow.plans import attributes_of, functions_of, graph_of_function
from tracelens_tensorflow.recording import Recorder

if TYPE_CHECKING:
    from tracelens.session import Session

MAX_OPS = 50_000
"""Ops within functions that are run and recorded for one bad run."""


class Functions:
    """The functions of one run.

    Args:
        session: the recording.
        array_of: tells what a tensor held, by name; ``None`` if it was not fetched.
        id_of: tells the id of the value that a tensor, or a variable op, holds.
        variables: variables' values before the run, by variable op.
    """

    def __init__(
        self,
        session: Session,
        array_of: Callable[[str], Any],
        id_of: Callable[[Any], int],
        variables: Mapping[Any, Any],
    ) -> None:
        self._recorder = Recorder(session)
        self._recorder.full = True
        self._recorder.flags = int(OpFlag.REPLAYED)
        self._array_of = array_of
        self._id_of = id_of
        self._variables = variables
        self._handles: dict[Any, Any] = {}
        self._eager: dict[str, Any] = {}
        self._n_ops = 0

    def close(self) -> None:
        """Free the copies of the variables."""
        with context.eager_mode():
            for handle in self._handles.values():
                gen_resource_variable_ops.destroy_resource_op(handle, ignore_lookup_error=True)

    def make(self, op: Any) -> None:
        """Run an op whose output no session hands over (a list of tensors), to have it."""
        with context.eager_mode():
            inputs = [self._given(tensor) for tensor in op.inputs]
            ctx = context.context()
            outputs = pywrap_tfe.TFE_Py_Execute(
                ctx._handle, ctx.device_name, op.type, inputs, attributes_of(op), len(op.outputs)
            )
        self._keep(op, outputs)

    def run(self, op: Any) -> list[tuple[Any, int]]:
        """Run what an op runs, op by op; return its outputs with their value ids.

        Args:
            op: a call, branch or loop.

        Raises:
            NotInterpretable: it cannot be run here, or not twice.
        """
        graphs = [graph_of_function(op.graph, name) for name in functions_of(op)]
        for graph in graphs:
            effects = effects_of(graph)
            for each in (*effects.keep, *effects.lost):
                raise NotInterpretable(f"{each.name} ({each.type}) must not run twice")
        with context.eager_mode():
            given = [self._given(tensor) for tensor in op.inputs]
            outputs = self._run(op, graphs, given)
        self._keep(op, outputs)
        return [(tensor, self._recorder.value_id(tensor)) for tensor in outputs]

    def _run(self, op: Any, graphs: Sequence[Any], given: list[Any]) -> list[Any]:
        skip = frozenset().union(*(effects_of(graph).skip for graph in graphs))
        interpreter = Interpreter(self._ran, skip=skip)
        count = len(op.outputs)
        if op.type in LOOPS:
            condition, body = graphs
            values = given
            while bool(np.all(interpreter.run(condition, values, 1)[0].numpy())):
                values = interpreter.run(body, values, count)
            return values[:count]
        if op.type in BRANCHES:
            chosen = int(given[0].numpy())
            # An If names its branch for true first, a Case numbers its branches.
            place = chosen if "Case" in op.type else 1 - bool(chosen)
            graph = graphs[min(max(place, 0), len(graphs) - 1)]
            return interpreter.run(graph, given[1:], count)
        return interpreter.run(graphs[0], given, count)

    def _ran(self, op: Any, inputs: list[Any], outputs: list[Any]) -> None:
        self._n_ops += 1
        if self._n_ops > MAX_OPS:
            raise NotInterpretable(f"more than {MAX_OPS} ops ran in functions")
        self._recorder.graph_op(op, inputs, outputs)

    def _given(self, tensor: Any) -> Any:
        """Return an eager tensor that holds what an input of an op held."""
        known = self._eager.get(tensor.name)
        if known is not None:
            return known
        if kinds.is_handle(tensor):
            return self._handle(tensor)
        array = self._array_of(tensor.name)
        if array is None:
            raise NotInterpretable(f"what {tensor.name} held was not kept")
        made = tf.constant(array, dtype=tensor.dtype.base_dtype)
        value_id = self._id_of(tensor.name)
        if value_id >= 0:
            self._recorder.adopt(made, value_id)
        return made

    def _handle(self, tensor: Any) -> Any:
        variable = kinds.variable_of(tensor)
        value = self._variables.get(variable)
        if value is None:
            raise NotInterpretable(f"what {tensor.name} refers to is no variable that was read")
        handle = self._handles.get(variable)
        if handle is None:
            dtype = dtypes.as_dtype(variable.get_attr("dtype")).base_dtype
            handle = gen_resource_variable_ops.var_handle_op(
                dtype=dtype,
                shape=value.shape,
                shared_name=f"tracelens_copy_{id(self)}_{variable.name}",
            )
            gen_resource_variable_ops.assign_variable_op(handle, tf.constant(value, dtype=dtype))
            self._handles[variable] = handle
            self._recorder.register_parameters([handle])
            value_id = self._id_of(variable)
            if value_id >= 0:
                self._recorder.adopt(handle, value_id)
        return handle

    def _keep(self, op: Any, outputs: Sequence[Any]) -> None:
        for tensor, made in zip(op.outputs, outputs, strict=False):
            if not kinds.can_fetch(tensor):
                self._eager[tensor.name] = made


def runs_functions(op: Any) -> bool:
    """Tell whether an op is a call, branch or loop."""
    return bool(functions_of(op))


def makes_lists(op: Any) -> bool:
    """Tell whether an op puts out what a session cannot hand over, such as a list of tensors."""
    return any(tensor.dtype == dtypes.variant for tensor in op.outputs)
