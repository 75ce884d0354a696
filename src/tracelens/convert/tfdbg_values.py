"""Which value each tensor of a tfdbg v2 dump holds, followed through what the dump left out.

tfdbg does not trace placeholders, Identity, calls and control flow, nor variables' handles: a
tensor behind these is found by what they hand on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tracelens.convert import tfdbg_program as program
from tracelens.convert.tfdbg_events import Execution
from tracelens.convert.tfdbg_health import UNKNOWN, Health
from tracelens.convert.tfdbg_program import GraphFacts
from tracelens.events import NO_ID

MAX_EAGER = 1 << 18
"""Eager tensors that are remembered, the newest."""

_MAX_DEPTH = 32
_MAX_ENDS = 256


@dataclass(frozen=True, slots=True)
class Known:
    """A value that was written.

    Attributes:
        value_id: its id.
        health: what is known of it.
        step: when it was written.
        op_name: what wrote it.
    """

    value_id: int
    health: Health
    step: int
    op_name: str

    @property
    def bad(self) -> bool:
        """Whether it holds a NaN or Inf."""
        return bool(self.health.bad)


NOTHING = Known(NO_ID, UNKNOWN, -1, "")
Handle = int | str
"""What a variable is known by: its eager tensor, or its name in its graph."""


class Values:
    """The values that tensors and variables hold.

    Attributes:
        ends: bad eager values that no op has read so far.
        call_of: finds the call that a function's traces to come belong to.
    """

    def __init__(self) -> None:
        self._eager: OrderedDict[int, Known] = OrderedDict()
        self._graph: dict[tuple[str, str], Known] = {}
        self._variables: dict[Handle, Known] = {}
        self._calls: dict[str, Execution | None] = {}
        self.ends: OrderedDict[int, Known] = OrderedDict()
        self.call_of: Callable[[str], Execution | None] = lambda _: None

    # Eager tensors

    def eager(self, number: int) -> Known:
        """Return what an eager tensor holds."""
        return self._eager.get(number, NOTHING)

    def read(self, numbers: tuple[int, ...]) -> None:
        """Take note that an op read eager tensors."""
        for number in numbers:
            self.ends.pop(number, None)

    def put_eager(self, number: int, known: Known, *, may_end: bool) -> None:
        """Remember what an eager tensor holds."""
        self._eager[number] = known
        if len(self._eager) > MAX_EAGER:
            self._eager.popitem(last=False)
        if may_end and known.bad:
            self.ends[number] = known
            if len(self.ends) > _MAX_ENDS:
                self.ends.popitem(last=False)

    # Variables

    def variable(self, handle: Handle) -> Known:
        """Return what was written into a variable last."""
        return self._variables.get(handle, NOTHING)

    def put_variable(self, handle: Handle, known: Known) -> None:
        """Remember what was written into a variable."""
        self._variables[handle] = known

    def handle(self, graph: GraphFacts, name: str, depth: int = 0) -> Handle:
        """Return what a resource of a graph is known by."""
        op_name, _ = program.split(name)
        if op_name in graph.placeholders and depth < _MAX_DEPTH:
            place = graph.placeholders.index(op_name)
            if graph.caller is None:
                call = self.call(graph)
                if call is not None and place < len(call.inputs):
                    return call.inputs[place]
            elif (given := _given_to(graph, place)) is not None and graph.outer is not None:
                return self.handle(graph.outer, given, depth + 1)
        return f"{graph.graph_id}/{op_name}"

    # Tensors of graphs

    def call(self, graph: GraphFacts) -> Execution | None:
        """Return the call that a function runs in now."""
        if graph.graph_id not in self._calls:
            self._calls[graph.graph_id] = self.call_of(graph.graph_id)
        return self._calls[graph.graph_id]

    def called(self, graph: GraphFacts, call: Execution) -> None:
        """A function's call is known for certain."""
        self._calls[graph.graph_id] = call

    def end_step(self) -> None:
        """The calls so far are over."""
        self._calls.clear()

    def traced(self, graph: GraphFacts, name: str) -> Known | None:
        """Return the newest value of a tensor that the dump traces."""
        return self._graph.get((graph.graph_id, name))

    def put(self, graph: GraphFacts, name: str, known: Known) -> None:
        """Remember what a graph's tensor holds."""
        self._graph[graph.graph_id, name] = known

    def find(self, graph: GraphFacts, name: str, depth: int = 0) -> Known:
        """Return the newest value of a graph's tensor."""
        known = self._graph.get((graph.graph_id, name))
        if known is not None or depth > _MAX_DEPTH:
            return known or NOTHING
        op_name, slot = program.split(name)
        op = graph.ops.get(op_name)
        if op is None:
            return NOTHING
        if op.op_type == "Placeholder":
            return self.handed_in(graph, op_name, depth)
        if op_name in graph.callees:
            results = [
                self.find(callee, callee.results()[slot], depth + 1)
                for callee in graph.callees[op_name]
                if not callee.is_condition and slot < len(callee.results())
            ]
            return max(results, key=lambda each: each.value_id, default=NOTHING)
        if op.op_type in ("Identity", "StopGradient") and op.inputs:
            return self.find(graph, op.inputs[0], depth + 1)
        return NOTHING

    def handed_in(self, graph: GraphFacts, op_name: str, depth: int = 0) -> Known:
        """Return what a placeholder of a graph stands for."""
        place = graph.placeholders.index(op_name)
        if graph.caller is None:
            call = self.call(graph)
            if call is None or place >= len(call.inputs):
                return NOTHING
            return self.eager(call.inputs[place])
        name = _given_to(graph, place)
        if graph.outer is None or name is None:
            return NOTHING
        given = self.find(graph.outer, name, depth + 1)
        op, _ = graph.caller
        bodies = [c for c in graph.outer.callees.get(op.name, ()) if not c.is_condition]
        if "While" in op.op_type:
            # From the second time round, what the body handed back is handed in.
            for body in bodies:
                looped = self._handed_back(body, place)
                if looped is not None and looped.value_id > given.value_id:
                    return looped
        return given

    def _handed_back(self, body: GraphFacts, place: int) -> Known | None:
        results = body.results()
        if place >= len(results):
            return None
        known = self.traced(body, results[place])
        op = body.ops[program.split(results[place])[0]]
        if known is None and op.op_type == "Identity" and op.inputs:
            known = self.traced(body, op.inputs[0])
        return known


def _given_to(graph: GraphFacts, place: int) -> str | None:
    """Return the tensor of the outer graph that a graph's input stands for."""
    if graph.caller is None:
        return None
    op, first = graph.caller
    inputs = program.data_inputs(op.inputs)[first:]
    return inputs[place] if place < len(inputs) else None
