"""Puts the check of a plan's frontier into its graph: one vector of sums, fetched with the rest.

The ops are named ``tracelens/...`` and left out of what the program exports of its graph.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tensorflow.python.framework import dtypes
from tensorflow.python.ops import gen_array_ops, gen_math_ops, gen_nn_ops, gen_resource_variable_ops

from tracelens import stats
from tracelens_tensorflow.session_plan import Plan

SCOPE = "tracelens/"
_SMALL = (dtypes.float16, dtypes.bfloat16)
_FALSE_ALARMS = 3
"""Sums that overflowed although nothing was bad, before only NaN counts as an alarm."""


_ON_GRAPH = "_tracelens_checks"


def add_check(session: Any, plan: Plan) -> None:
    """Make the check of a plan, which becomes the beginning of its ``extra``.

    What was put into a graph stays with it: a later recording uses it again.
    """
    if _is_sealed(session):
        _fetch_as_is(plan)
    else:
        checks = getattr(plan.graph, _ON_GRAPH, None)
        if checks is None:
            checks = GraphChecks(plan.graph)
            setattr(plan.graph, _ON_GRAPH, checks)
        checks.add(plan)
    plan.extra = [*plan.extra, *plan.sources]


class GraphChecks:
    """The checks that were put into one graph.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._sums: dict[Any, Any] = {}
        self._packed: dict[tuple[str, ...], Any] = {}
        self._axes: dict[int, Any] = {}
        _hide_from_exports(graph)

    def add(self, plan: Plan) -> None:
        """Make the check of a plan's frontier; the plan's ``extra`` begins with it."""
        with _outside(self._graph):
            sums = [self._sum_of(watched.tensor) for watched in plan.frontier]
            key = tuple(total.name for total in sums)
            if key not in self._packed:
                self._packed[key] = gen_array_ops.pack(sums, axis=0)
            plan.extra = [self._packed[key]]
        plan.checked, plan.packed = 1, True

    def _sum_of(self, tensor: Any) -> Any:
        known = self._sums.get(tensor.ref())
        if known is None:
            known = self._sums[tensor.ref()] = self._make_sum(tensor)
        return known

    def _make_sum(self, tensor: Any) -> Any:
        with self._graph.device(tensor.op.device or None):
            dtype = tensor.dtype.base_dtype
            if dtype in _SMALL:
                tensor = gen_math_ops.cast(tensor, dtypes.float32)
            rank = tensor.shape.rank
            if rank is None:
                total = gen_nn_ops.l2_loss(tensor)
            elif rank == 0:
                total = gen_array_ops.identity(tensor)
            else:
                total = gen_math_ops._sum(tensor, self._all_axes(rank))
            if dtype == dtypes.float64:
                total = gen_math_ops.cast(total, dtypes.float32)
            return total

    def _all_axes(self, rank: int) -> Any:
        known = self._axes.get(rank)
        if known is None:
            from tensorflow.python.framework import constant_op

            with self._graph.device(None):
                known = self._axes[rank] = constant_op.constant(np.arange(rank, dtype=np.int32))
        return known


def _fetch_as_is(plan: Plan) -> None:
    """Check the frontier by fetching it: for graphs that nothing may be added to."""
    plan.extra = [watched.tensor for watched in plan.frontier]
    plan.checked, plan.packed = len(plan.extra), False


def _is_sealed(session: Any) -> bool:
    """Tell whether nothing can be added to what a session runs."""
    experimental = getattr(session._config, "experimental", None)
    fixed = bool(getattr(experimental, "optimize_for_static_graph", False))
    return fixed or (session.graph.finalized and not hasattr(session.graph, "_unsafe_unfinalize"))


def alarms(plan: Plan, arrays: Sequence[Any]) -> list[int]:
    """Return which tensors of the frontier a run's check gave alarm for.

    Args:
        plan: what ran.
        arrays: what was fetched for the check.
    """
    if not plan.packed:
        return [place for place, array in enumerate(arrays) if stats.check(array) == 1]
    sums = arrays[0]
    if np.isfinite(sums).all():
        return []
    bad = np.isnan(sums) if plan.false_alarms >= _FALSE_ALARMS else ~np.isfinite(sums)
    return [int(place) for place in np.flatnonzero(bad)]


@contextmanager
def _outside(graph: Any) -> Iterator[None]:
    """Make ops in a graph apart from whatever the program is doing with it."""
    finalized = graph.finalized
    if finalized:
        graph._unsafe_unfinalize()
    try:
        with (
            graph.as_default(),
            graph.control_dependencies(None),
            graph.colocate_with(None, ignore_existing=True),
            graph.device(None),
            graph.name_scope(SCOPE),
        ):
            yield
    finally:
        if finalized:
            graph.finalize()


def _hide_from_exports(graph: Any) -> None:
    """Leave our ops out of the GraphDefs that the graph makes of itself."""
    original = graph._as_graph_def

    def _as_graph_def(self: Any, *args: Any, **kwargs: Any) -> Any:
        graph_def, version = original(*args, **kwargs)
        kept = [node for node in graph_def.node if not node.name.startswith(SCOPE)]
        if len(kept) < len(graph_def.node):
            del graph_def.node[:]
            graph_def.node.extend(kept)
        return graph_def, version

    graph._as_graph_def = types.MethodType(_as_graph_def, graph)


def value_tensor(graph: Any, variable: Any) -> Any:
    """Return a tensor that is a variable's value, to be fetched; made where there is none."""
    output = variable.outputs[0]
    if variable.type != "VarHandleOp":
        return output
    for reader in output.consumers():
        if (
            reader.type == "ReadVariableOp"
            and not reader.control_inputs
            and not reader.name.startswith(SCOPE)
        ):
            return reader.outputs[0]
    with _outside(graph), graph.device(variable.device or None):
        return gen_resource_variable_ops.read_variable_op(
            output, dtypes.as_dtype(variable.get_attr("dtype"))
        )


def reader(session: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """Return what reads variables' values in a session, without keeping it alive."""
    reference = weakref.ref(session)

    def read(variables: Sequence[Any]) -> list[Any]:
        alive = reference()
        if alive is None or not variables:
            return []
        arrays = alive.run([value_tensor(alive.graph, variable) for variable in variables])
        # A reference variable's array is the variable's own memory.
        shared = [variable.type != "VarHandleOp" for variable in variables]
        return [np.array(a) if own else a for a, own in zip(arrays, shared, strict=True)]

    return read
