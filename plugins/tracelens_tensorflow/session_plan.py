"""What one kind of `Session.run` executes: its ops, where they live, and its frontier.

A plan is made once for each set of fetches, targets and feeds of a graph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.plans import functions_of

_LOSS_WORDS = ("loss", "cost")
_GRADIENT = re.compile(r"((?:.*/)?gradients(?:_\d+)?)/(.+?)_grad/")
_NO_CONDITIONS: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Place:
    """Where an op stands among TF1's control flow.

    Attributes:
        frame: name of the while loop it runs in, empty outside of loops.
        conditions: ``(name of a predicate, branch)`` that must hold for it to run.
    """

    frame: str = ""
    conditions: frozenset[tuple[str, int]] = _NO_CONDITIONS

    @property
    def certain(self) -> bool:
        """It runs exactly once in every run."""
        return not self.frame and not self.conditions


@dataclass(frozen=True, slots=True)
class Watched:
    """One tensor of the frontier.

    Attributes:
        sink: kind of sink that it is.
        name: its name in a report.
        tensor: what is looked at.
    """

    sink: str
    name: str
    tensor: Any


@dataclass(eq=False)
class Plan:
    """One kind of run.

    Attributes:
        graph: the graph.
        fetches: what the program fetches.
        targets: ops it runs besides.
        fed: names of the tensors it feeds.
        fed_tensors: these.
        ops: the ops that run, producers first.
        places: where each of them stands.
        writes: those that write variables.
        variables: variables that are read or written.
        sources: tensors that another run need not make alike: batches, draws.
        loose_sources: ops of that kind whose outputs cannot be fetched.
        frontier: what is checked.
        is_step: it trains: it updates a variable from the variable's old value.
        known: what is true of its ops in every run, by op; ``None`` until asked for.
        extra: what is fetched besides, sources last.
        others: the other floats, for capture levels that keep every op; ``None`` until asked for.
        checked: how many of ``extra`` are there for the check.
        packed: the check is one vector of statistics, not the frontier itself.
    """

    graph: Any
    fetches: Sequence[Any]
    targets: Sequence[Any]
    fed: frozenset[str]
    fed_tensors: Sequence[Any] = ()
    ops: list[Any] = field(default_factory=list)
    places: dict[Any, Place] = field(default_factory=dict)
    writes: list[Any] = field(default_factory=list)
    variables: list[Any] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    loose_sources: list[Any] = field(default_factory=list)
    frontier: list[Watched] = field(default_factory=list)
    is_step: bool = False
    known: dict[Any, Any] | None = None
    extra: list[Any] = field(default_factory=list)
    others: list[Any] | None = None
    checked: int = 0
    packed: bool = False
    bad_before: bool = False
    false_alarms: int = 0

    def floats(self) -> list[Any]:
        """Return every float tensor that can be fetched in any run."""
        return [
            tensor
            for op in self.ops
            for tensor in op.outputs
            if kinds.is_float(tensor) and not tensor.dtype._is_ref_dtype
            if self.place_of(tensor).certain and tensor.name not in self.fed
        ]

    def other_floats(self) -> list[Any]:
        """Return the floats that are not fetched already."""
        if self.others is None:
            known = {tensor.name for tensor in (*self.fetches, *self.sources)}
            self.others = [tensor for tensor in self.floats() if tensor.name not in known]
        return self.others

    @property
    def is_plain(self) -> bool:
        """Every op runs exactly once, and runs no function: nothing of the run is out of sight."""
        return not any(functions_of(op) for op in self.ops) and all(
            place.certain for place in self.places.values()
        )

    def place_of(self, tensor: Any) -> Place:
        """Return where a tensor of these ops stands: only one output of a switch is there."""
        return _of_output(tensor, self.places)


def make_plan(
    graph: Any, fetches: Sequence[Any], targets: Sequence[Any], fed: Sequence[Any]
) -> Plan:
    """Return the plan of a run.

    Args:
        graph: the session's graph.
        fetches: tensors fetched.
        targets: ops run besides.
        fed: tensors fed.
    """
    names = frozenset(tensor.name for tensor in fed)
    plan = Plan(graph, tuple(fetches), tuple(targets), names, tuple(fed))
    plan.ops = _reachable(plan)
    plan.places = _places(plan.ops)
    plan.writes = [op for op in plan.ops if kinds.is_write(op)]
    plan.variables = _variables(plan.ops)
    _find_sources(plan)
    plan.is_step = _is_step(plan)
    plan.frontier = _frontier(plan)
    return plan


def _reachable(plan: Plan) -> list[Any]:
    """Return the ops that run, producers first; what is fed cuts the way back."""
    roots = [tensor.op for tensor in plan.fetches if tensor.name not in plan.fed]
    done: set[Any] = set()
    order: list[Any] = []
    waiting = sorted({*roots, *plan.targets}, key=lambda op: op.name)
    for root in waiting:
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            op, expanded = stack.pop()
            if expanded:
                order.append(op)
                continue
            if op in done:
                continue
            done.add(op)
            stack.append((op, True))
            before = [t.op for t in op.inputs if t.name not in plan.fed]
            # A loop's back edge would put its body before its head.
            back = [each for each in before if each.type in ("NextIteration", "RefNextIteration")]
            waiting.extend(back)
            before = [each for each in before if each not in back]
            stack.extend((each, False) for each in (*before, *op.control_inputs))
    return order


def _places(ops: Sequence[Any]) -> dict[Any, Place]:
    """Return where each op stands; TF1's control flow is told by its primitives alone.

    Contexts are not asked: a graph that was imported has none.
    """
    places: dict[Any, Place] = {}
    outer: dict[str, Place] = {}
    for op in ops:
        incoming = [_of_output(t, places) for t in op.inputs if t.op in places]
        control = [places[each] for each in op.control_inputs if each in places]
        place = _joined(op.type, incoming, control)
        if op.type in ("Enter", "RefEnter"):
            frame = op.get_attr("frame_name").decode()
            outer.setdefault(frame, place)
            place = Place(frame, place.conditions)
        elif op.type in ("Exit", "RefExit"):
            place = outer.get(place.frame, Place())
        places[op] = place
    return places


def _joined(op_type: str, incoming: list[Place], control: list[Place]) -> Place:
    everything = [*incoming, *control]
    frame = next((place.frame for place in everything if place.frame), "")
    if op_type in ("Merge", "RefMerge") and incoming:
        conditions = frozenset.intersection(*(place.conditions for place in incoming))
        if len(incoming) == 1:
            conditions = incoming[0].conditions if frame else _NO_CONDITIONS
        return Place(frame, conditions)
    return Place(frame, frozenset().union(*(place.conditions for place in everything)))


def _of_output(tensor: Any, places: dict[Any, Place]) -> Place:
    """Return where the reader of a tensor stands by it: a switch's outputs part."""
    place = places[tensor.op]
    if tensor.op.type in ("Switch", "RefSwitch"):
        condition = (tensor.op.inputs[1].name, tensor.value_index)
        return Place(place.frame, place.conditions | {condition})
    return place


def _variables(ops: Sequence[Any]) -> list[Any]:
    found: dict[Any, None] = {}
    for op in ops:
        if op.type == "VarHandleOp" or op.type in ("VariableV2", "Variable"):
            found[op] = None
    return list(found)


def _find_sources(plan: Plan) -> None:
    wanted = {tensor.name for op in plan.ops for tensor in op.inputs}
    wanted.update(tensor.name for tensor in plan.fetches)
    for op in plan.ops:
        if not kinds.is_source(op):
            continue
        outputs = [t for t in op.outputs if t.name in wanted and kinds.can_fetch(t)]
        if not outputs:
            continue
        if plan.places[op].certain:
            plan.sources.extend(outputs)
        else:
            plan.loose_sources.append(op)


def _is_step(plan: Plan) -> bool:
    """Tell whether a run trains: it changes floats by an update, or sets them from older ones.

    Initialisers may read other variables too, but ask first whether these are initialised.
    """
    asks = any(op.type in kinds.INITIALISED_TESTS for op in plan.ops)
    reads = any(kinds.read_variable(op) is not None for op in plan.ops)
    for op in plan.writes:
        floats = any(_holds_floats(variable) for variable in kinds.written_by(op))
        if floats and (not kinds.is_set(op) or (reads and not asks)):
            return True
    return False


def _holds_floats(variable: Any) -> bool:
    return _dtype(variable) in kinds.FLOATS


def _dtype(variable: Any) -> Any:
    from tensorflow.python.framework import dtypes

    return dtypes.as_dtype(variable.get_attr("dtype")).base_dtype


def _frontier(plan: Plan) -> list[Watched]:
    found: dict[Any, Watched] = {}
    losses = _losses(plan)
    for tensor in plan.fetches:
        if _checkable(plan, tensor):
            named = any(word in tensor.name.lower() for word in _LOSS_WORDS)
            loss = tensor.op.name in losses or (named and tensor.shape.num_elements() == 1)
            sink = "loss" if loss else "read"
            found.setdefault(tensor.ref(), Watched(sink, tensor.op.name, tensor))
    for op in plan.writes:
        written = kinds.written_by(op)
        name = written[0].name if written else op.name
        sink = "gradient" if plan.is_step and not kinds.is_set(op) else "parameter"
        for tensor in kinds.updates_of(op):
            if _checkable(plan, tensor) and tensor.op.type != "Const":
                found.setdefault(tensor.ref(), Watched(sink, name, tensor))
    return list(found.values())


def _losses(plan: Plan) -> set[str]:
    """Return the names of ops whose gradients a run takes: a scope of gradients begins there."""
    first: dict[str, tuple[int, str]] = {}
    for op in plan.ops:
        found = _GRADIENT.match(op.name)
        if found is not None:
            scope, forward = found.groups()
            first[scope] = min(first.get(scope, (op._id, forward)), (op._id, forward))
    return {forward for _, forward in first.values()}


def _checkable(plan: Plan, tensor: Any) -> bool:
    if tensor.name in plan.fed or not kinds.is_float(tensor):
        return False
    return tensor.op in plan.places and plan.place_of(tensor).certain
