"""The program behind a tfdbg v2 dump: its source lines, its graphs, who calls which graph."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tracelens.convert.tfdbg_events import Frame, Graph, GraphOp, SourceFile
from tracelens.events import Phase, Source

_LIBRARY_PARTS = (
    "/site-packages/",
    "/dist-packages/",
    "/tensorflow/python/",
    "/keras/src/",
    "/lib/python",
    "\\site-packages\\",
    "__autograph_generated_file",
)
_BACKWARD = re.compile(r"(?:^|/)(?:gradient_tape|gradients(?:_\d+)?)/")
_CALLERS = frozenset(
    "While StatelessWhile If StatelessIf Case StatelessCase PartitionedCall "
    "StatefulPartitionedCall".split()
)
_LOOPS = frozenset("While StatelessWhile".split())
_CHOOSERS = frozenset("If StatelessIf Case StatelessCase".split())
_WRITES = re.compile(r"^(Resource(Sparse)?Apply|ResourceScatter|Assign\w*VariableOp$)")


class Sources:
    """Source files and stack frames.

    Text is kept only of files that are the user's: those outside of the libraries' folders.
    """

    def __init__(self) -> None:
        self._files: list[tuple[str, tuple[str, ...], bool]] = []
        self._frames: dict[str, Frame] = {}
        self._known: dict[tuple[str, ...], Source | None] = {}
        self.host = ""

    def add_file(self, file: SourceFile) -> None:
        """Take in a source file; frames count files in this order."""
        own = not file.path.startswith("<") and not any(p in file.path for p in _LIBRARY_PARTS)
        self._files.append((file.path, file.lines if own else (), own))
        self.host = self.host or file.host

    def add_frame(self, frame: Frame) -> None:
        """Take in a stack frame."""
        self._frames[frame.frame_id] = frame

    def user_line(self, frame_ids: tuple[str, ...]) -> Source | None:
        """Return the user's innermost line of a stack, ``None`` if no frame is the user's."""
        if frame_ids not in self._known:
            self._known[frame_ids] = self._find(frame_ids)
        return self._known[frame_ids]

    def _find(self, frame_ids: tuple[str, ...]) -> Source | None:
        for frame_id in reversed(frame_ids):
            frame = self._frames.get(frame_id)
            if frame is None or not 0 <= frame.file < len(self._files):
                continue
            path, lines, own = self._files[frame.file]
            if own:
                code = lines[frame.line - 1].strip() if 0 < frame.line <= len(lines) else ""
                return Source(path, frame.line, frame.function, code)
        return None


@dataclass(slots=True, eq=False)
class GraphFacts:
    """One graph.

    Attributes:
        graph_id: its id in the dump.
        name: its name.
        outer: the graph it was made in, ``None`` at the outermost.
        ops: its ops by name, in the order they were made.
        placeholders: names of what it is called with, in order.
        writes: ops that write variables.
        caller: the op that calls it, and the position of its first input that is handed on.
        callees: graphs that ops of it call, by op name.
    """

    graph_id: str
    name: str
    outer: GraphFacts | None
    ops: dict[str, GraphOp] = field(default_factory=dict)
    placeholders: list[str] = field(default_factory=list)
    writes: list[GraphOp] = field(default_factory=list)
    caller: tuple[GraphOp, int] | None = None
    callees: dict[str, list[GraphFacts]] = field(default_factory=dict)
    _unclaimed: list[GraphFacts] = field(default_factory=list)
    _results: list[str] | None = None

    @property
    def is_function(self) -> bool:
        """It is called from Python: the graph it was made in is the program's outermost."""
        return self.caller is None and (self.outer is None or self.outer.outer is None)

    @property
    def is_condition(self) -> bool:
        """It is the condition of a loop, whose result is no result of the loop."""
        return "while_cond" in self.name or self.name.endswith("_cond")

    def results(self) -> list[str]:
        """Return the tensors that it hands back, as far as that can be told, in order.

        Functions and loop bodies end in one Identity op for each result.
        """
        if self._results is None:
            read = {_op_of(name) for op in self.ops.values() for name in op.inputs}
            ends = [op for op in self.ops.values() if op.name not in read and op.n_outputs]
            identities = [op for op in ends if op.op_type == "Identity"]
            chosen = identities or ends
            self._results = [f"{op.name}:{k}" for op in chosen for k in range(op.n_outputs)]
        return self._results


class Graphs:
    """All graphs of a dump."""

    def __init__(self) -> None:
        self._graphs: dict[str, GraphFacts] = {}

    def __getitem__(self, graph_id: str) -> GraphFacts:
        """Return a graph, an empty one if the dump does not tell of it."""
        known = self._graphs.get(graph_id)
        if known is None:
            known = self._graphs[graph_id] = GraphFacts(graph_id, "", None)
        return known

    def add(self, graph: Graph) -> None:
        """Take in a graph."""
        outer = self._graphs.get(graph.outer_id)
        made = self._graphs[graph.graph_id] = GraphFacts(graph.graph_id, graph.name, outer)
        if outer is not None:
            outer._unclaimed.append(made)

    def add_op(self, op: GraphOp) -> None:
        """Take in an op of a graph, in the order they were made."""
        graph = self[op.graph_id]
        graph.ops[op.name] = op
        graph._results = None
        if op.op_type == "Placeholder":
            graph.placeholders.append(op.name)
        elif _WRITES.match(op.op_type):
            graph.writes.append(op)
        elif op.op_type in _CALLERS:
            self._claim(graph, op)

    def _claim(self, graph: GraphFacts, op: GraphOp) -> None:
        """Find the graphs that an op calls: made just before it, with as many inputs."""
        first = 1 if op.op_type in _CHOOSERS else 0
        n_inputs = len(data_inputs(op.inputs)) - first
        mine = [g for g in graph._unclaimed if g.ops and len(g.placeholders) == n_inputs]
        if op.op_type in _LOOPS:
            # A condition takes the loop's variables, but not all that the body reads besides.
            conditions = [g for g in graph._unclaimed if g.is_condition]
            mine = [*conditions[-1:], *[g for g in mine if not g.is_condition][-1:]]
        elif not first:
            mine = mine[-1:]
        for callee in mine:
            callee.caller = op, first
            graph._unclaimed.remove(callee)
        graph.callees[op.name] = mine


def phase_of(op_type: str, name: str) -> Phase:
    """Return the phase that an op's type and name tell."""
    if _WRITES.match(op_type):
        return Phase.OPTIMIZER
    return Phase.BACKWARD if _BACKWARD.search(name) else Phase.FORWARD


def forward_of(graph: GraphFacts, name: str) -> GraphOp | None:
    """Return the forward op of a backward one.

    The name points to it (the longest part that is an op's name), or the op is the gradient of
    the op that wrote an input (``SqrtGrad`` reads what ``Sqrt`` put out).
    """
    found = _BACKWARD.search(name)
    if found is None:
        return None
    parts = name[found.end() :].split("/")
    for length in range(len(parts), 0, -1):
        candidate = "/".join(parts[:length])
        for trial in (candidate, candidate.removesuffix("_grad")):
            if (op := graph.ops.get(trial)) is not None:
                return op
    op = graph.ops.get(name)
    for source in data_inputs(op.inputs) if op is not None else ():
        writer = graph.ops.get(split(source)[0])
        if op is not None and writer is not None and op.op_type == f"{writer.op_type}Grad":
            return writer
    return None


def is_write(op_type: str) -> bool:
    """Tell whether an op writes a variable."""
    return bool(_WRITES.match(op_type))


def split(name: str) -> tuple[str, int]:
    """Return a tensor's op and output number.

    Examples:
        >>> split("while/add:1"), split("x")
        (('while/add', 1), ('x', 0))
    """
    op, _, slot = name.rpartition(":")
    return (op, int(slot)) if op and slot.isdecimal() else (name, 0)


def data_inputs(names: Iterable[str]) -> list[str]:
    """Return the inputs that carry data, not order."""
    return [name for name in names if not name.startswith("^")]


def _op_of(name: str) -> str:
    return split(name)[0]


def short_device(name: str) -> str:
    """Return a device's short name.

    Examples:
        >>> short_device("/job:localhost/replica:0/task:0/device:GPU:1"), short_device("")
        ('cuda:1', '')
    """
    kind, _, number = name.rpartition("/device:")[2].lower().partition(":")
    if kind in ("", "cpu"):
        return kind
    return f"{'cuda' if kind == 'gpu' else kind}:{number or 0}"


def module_of(op_name: str, graph: GraphFacts) -> dict[str, str]:
    """Return the name scope of an op under the name of its graph, as its place in the program."""
    scope = op_name.rpartition("/")[0]
    place = "/".join(part for part in (graph.name, scope) if part)
    return {"module": place} if place else {}
