"""What the ops of a tfdbg v2 dump's graphs are, looked up once for all their runs."""

from __future__ import annotations

from dataclasses import dataclass

from tracelens.convert import tfdbg_program as program
from tracelens.convert.newtrace import NewTrace, site_keys
from tracelens.convert.tfdbg_events import GraphOp
from tracelens.convert.tfdbg_program import GraphFacts, Sources, module_of
from tracelens.events import OpFlag, Phase


@dataclass(frozen=True, slots=True)
class MadeOp:
    """What an op of a graph is, each time it runs.

    Attributes:
        op: as it was made, ``None`` if the dump does not tell.
        site: interned site.
        phase: part of a step.
        inputs: the tensors it reads.
        forward: key of its forward op, if it is a backward op.
        flags: ``OpFlag`` bits.
    """

    op: GraphOp | None
    site: int
    phase: Phase
    inputs: tuple[str, ...]
    forward: tuple[str, str] | None
    flags: int

    def is_a(self, op_type: str) -> bool:
        """Tell whether it is of a type."""
        return self.op is not None and self.op.op_type == op_type


class MadeOps:
    """The ops that have run so far.

    Args:
        trace: where sites are interned.
        sources: the program's lines.
    """

    def __init__(self, trace: NewTrace, sources: Sources) -> None:
        self._trace = trace
        self._sources = sources
        self._known: dict[tuple[str, str], MadeOp] = {}

    def of(self, graph: GraphFacts, op_name: str) -> MadeOp:
        """Return what an op of a graph is."""
        key = graph.graph_id, op_name
        known = self._known.get(key)
        if known is None:
            op = graph.ops.get(op_name)
            op_type = op.op_type if op is not None else op_name
            forward = program.forward_of(graph, op_name)
            frames = forward or op  # a backward op has the line of its forward op
            source = self._sources.user_line(frames.frames) if frames is not None else None
            site = {"op": op_type, **module_of(op_name, graph), **site_keys(source)}
            known = self._known[key] = MadeOp(
                op,
                self._trace.intern("site", site),
                program.phase_of(op_type, op_name),
                tuple(program.data_inputs(op.inputs)) if op is not None else (),
                (graph.graph_id, forward.name) if forward is not None else None,
                int(OpFlag.CONSTANT) if op_type == "Const" else 0,
            )
        return known
