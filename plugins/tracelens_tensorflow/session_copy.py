"""A session and graph of our own that hold the ops of some runs of the program's.

The copy acts on nothing: what prints, writes files or fills queues is left out, and batches,
draws and Python functions are given as they came out the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorflow.core.framework import graph_pb2
from tensorflow.python.client import session as tf_session
from tensorflow.python.framework import dtypes, importer
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops import gen_array_ops, gen_resource_variable_ops, gen_state_ops

from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.session_checks import SCOPE
from tracelens_tensorflow.session_history import Run
from tracelens_tensorflow.session_plan import Place, Plan

_KEPT_BY_TENSOR = ("Print",)


@dataclass
class Look:
    """A run that was looked into.

    Attributes:
        run: the run.
        ran: ops that ran in it.
        values: arrays by tensor name.
        before: variables' values before it, by variable op.
        after: and after it.
        in_loops: of an op that ends a TF1 loop, the op within that made its value bad.
    """

    run: Run
    ran: list[Any]
    values: dict[str, Any]
    before: dict[Any, Any]
    after: dict[Any, Any]
    in_loops: dict[Any, Any] = field(default_factory=dict)


def _holds(place: Place, known: Mapping[str, bool]) -> bool:
    """Tell whether what stands there runs once, by the predicates that are known."""
    return not place.frame and all(known.get(p) == bool(b) for p, b in place.conditions)


class Copy:
    """A session on a copy of the ops of some plans.

    Args:
        session: the program's session.
        plans: whose ops are copied.
        edit: changes the copied graph's definition before it is used.
    """

    def __init__(
        self, session: Any, plans: Iterable[Plan], edit: Callable[[Any], None] | None = None
    ) -> None:
        self._graph = tf_ops.Graph()
        plans = list(dict.fromkeys(plans))
        local = not session.sess_str
        graph_def = _graph_def(session.graph, plans, keep_devices=local)
        if edit is not None:
            edit(graph_def)
        with self._graph.as_default():
            importer.import_graph_def(graph_def, name="")
            variables = dict.fromkeys(v for plan in plans for v in plan.variables)
            self._setters = {v: self._make_setter(v) for v in variables}
        config = session._config
        self._session = tf_session.Session(graph=self._graph, config=config)

    def close(self) -> None:
        """Free the copy."""
        self._session.close()

    def set_variables(self, values: Mapping[Any, Any]) -> None:
        """Give the variables their values."""
        feeds, targets = {}, []
        for variable, (placeholder, setter, _) in self._setters.items():
            if variable in values:
                feeds[placeholder] = values[variable]
                targets.append(setter)
        if targets:
            self._session.run(targets, feeds)

    def read(self, variables: Iterable[Any]) -> dict[Any, Any]:
        """Return copies of variables' values; those without one are left out."""
        wanted = [v for v in variables if v in self._setters]
        try:
            arrays = self._session.run([self._setters[v][2] for v in wanted])
        except Exception:
            return {}
        return {v: np.array(a) for v, a in zip(wanted, arrays, strict=True)}

    def repeat(self, run: Run) -> None:
        """Run a run's updates."""
        targets = [self._graph.get_operation_by_name(op.name) for op in run.plan.writes]
        self._session.run(targets, self._given(run))

    def fetch(self, run: Run, names: Sequence[str]) -> None:
        """Run what some tensors of a run need.

        Raises:
            tf.errors.OpError: it failed.
        """
        tensors = [self._graph.get_tensor_by_name(name) for name in names]
        self._session.run(tensors, self._given(run))

    def look_into(self, run: Run) -> Look:
        """Run a run, updates included, with everything fetched."""
        plan = run.plan
        before = self.read(plan.variables)
        known = self._predicates(run)
        if known:
            self.set_variables(before)  # a predicate may stand behind an update
        alive = [op for op in plan.ops if _holds(plan.places[op], known)]
        wanted = [
            tensor.name
            for op in alive
            if op.type not in kinds.VARIABLES
            for tensor in op.outputs
            if kinds.can_fetch(tensor) and tensor.name not in run.given
            if not tensor.dtype._is_ref_dtype and tensor.dtype != dtypes.string
            if _holds(plan.place_of(tensor), known)
        ]
        fetches = [self._graph.get_tensor_by_name(name) for name in wanted]
        targets = [self._graph.get_operation_by_name(op.name) for op in plan.writes]
        arrays, _ = self._session.run([fetches, targets], self._given(run))
        values = {**dict(zip(wanted, arrays, strict=True)), **run.given}
        return Look(run, alive, values, before, self.read(plan.variables))

    def _predicates(self, run: Run) -> dict[str, bool]:
        """Return the predicates that decide which branches run, found from the outermost in."""
        plan = run.plan
        makers = {tensor.name: op for op in plan.ops for tensor in op.outputs}
        known: dict[str, bool] = {}
        asked = {
            predicate
            for place in plan.places.values()
            if not place.frame
            for predicate, _ in place.conditions
        }
        while True:
            ready = sorted(
                name
                for name in asked - known.keys()
                if name in run.given
                or (name in makers and _holds(plan.places[makers[name]], known))
            )
            if not ready:
                return known
            tensors = [self._graph.get_tensor_by_name(name) for name in ready]
            arrays = self._session.run(tensors, self._given(run))
            known.update((name, bool(a)) for name, a in zip(ready, arrays, strict=True))

    def _given(self, run: Run) -> dict[Any, Any]:
        return {self._graph.get_tensor_by_name(name): array for name, array in run.given.items()}

    def _make_setter(self, variable: Any) -> tuple[Any, Any, Any]:
        copied = self._graph.get_operation_by_name(variable.name).outputs[0]
        dtype = dtypes.as_dtype(variable.get_attr("dtype")).base_dtype
        with self._graph.name_scope(SCOPE), self._graph.device(variable.device or None):
            placeholder = gen_array_ops.placeholder(dtype)
            if variable.type == "VarHandleOp":
                setter = gen_resource_variable_ops.assign_variable_op(copied, placeholder)
                value = gen_resource_variable_ops.read_variable_op(copied, dtype)
            else:
                setter = gen_state_ops.assign(copied, placeholder, validate_shape=False).op
                value = copied
        return placeholder, setter, value


def _graph_def(graph: Any, plans: Sequence[Plan], *, keep_devices: bool) -> Any:
    """Return the part of a graph that plans need, without what acts on the world."""
    whole = graph.as_graph_def()
    nodes = {node.name: node for node in whole.node}
    wanted = _closure(nodes, (op.name for plan in plans for op in plan.ops))
    wanted |= _closure(
        nodes, (name.partition(":")[0] for plan in plans for name in plan.fed if name)
    )
    read = {
        source.lstrip("^").partition(":")[0]
        for name in wanted
        for source in nodes[name].input
        if not source.startswith("^")
    }
    fetched = {tensor.op.name for plan in plans for tensor in plan.fetches}
    dropped = {
        name
        for name in wanted
        if kinds.acts_by_type(nodes[name].op) and name not in read and name not in fetched
    }
    part = graph_pb2.GraphDef(versions=whole.versions, library=whole.library)
    for name in wanted - dropped:
        node = part.node.add()
        node.CopyFrom(nodes[name])
        if node.op in _KEPT_BY_TENSOR:
            _make_identity(node)
        kept = [s for s in node.input if s.lstrip("^").partition(":")[0] not in dropped]
        del node.input[:]
        node.input.extend(kept)
        # What it stood beside may not have come along; here everything runs in one process.
        node.attr.pop("_class", None)
        if not keep_devices:
            node.device = ""
    return part


def _closure(nodes: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    stack = [name for name in names if name in nodes]
    while stack:
        name = stack.pop()
        if name in found:
            continue
        found.add(name)
        for source in nodes[name].input:
            stack.append(source.lstrip("^").partition(":")[0])
    return found


def _make_identity(node: Any) -> None:
    node.op = "Identity"
    control = [source for source in node.input if source.startswith("^")]
    first = node.input[0]
    del node.input[:]
    node.input.extend([first, *control])
    for name in [name for name in node.attr if name not in ("T", "_class")]:
        del node.attr[name]
