"""The model as a tree of modules: time, ops and the health of forward and backward in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tracelens.storage.reader import TraceReader
from tracelens_tui import health
from tracelens_tui.health import Health

_BY_MODULE = """
    SELECT coalesce(module, ''), phase, count(*), sum(duration_ns), sum(nan_count),
           sum(inf_count), max(greatest(abs(vmin), abs(vmax))), min(op_id),
           min(op_id) FILTER (WHERE nan_count > 0 OR inf_count > 0)
    FROM ops WHERE rank = {rank} AND (flags & 128) = 0 {of_step}
    GROUP BY ALL LIMIT 200000"""


@dataclass(slots=True)
class Module:
    """One module, what is inside it included.

    Attributes:
        path: its whole path.
        name: the last part.
        depth: how many modules are around it.
        children: modules directly inside, in the order in which they ran.
        n_ops: ops that ran in it.
        duration_ns: their time.
        forward: worst health of an activation.
        backward: worst health of a gradient.
        absmax: greatest magnitude of an output.
        first_op: id of the first op.
        first_bad: id of the first op with a non-finite output; ``None`` if there is none.
        expanded: whether its children are listed.
    """

    path: str
    name: str
    depth: int
    children: dict[str, Module] = field(default_factory=dict)
    n_ops: int = 0
    duration_ns: int = 0
    forward: Health = health.UNKNOWN
    backward: Health = health.UNKNOWN
    absmax: float | None = None
    first_op: int = -1
    first_bad: int | None = None
    expanded: bool = False


def read(reader: TraceReader, step: int | None, rank: int) -> Module:
    """Sum up ops by module, of one step or of all; every parent shows its worst child.

    Raises:
        QueryRefused: the trace's tables cannot be queried.
    """
    of_step = "" if step is None else f"AND step = {int(step)}"
    rows = reader.sql(_BY_MODULE.format(rank=int(rank), of_step=of_step))
    return build(rows)


def build(rows: Iterable[tuple[Any, ...]]) -> Module:
    """Build the tree of rows ``(module, phase, n, ns, nan, inf, absmax, first op, bad op)``."""
    root = Module("", "(whole model)", 0, expanded=True)
    for path, phase, n_ops, spent, nan, inf, absmax, first_op, first_bad in sorted(
        rows, key=lambda row: row[7]
    ):
        state = health.worst_of(nan or 0, inf or 0)
        if absmax is None and not nan and not inf:
            state = health.UNKNOWN
        for module in _way(root, path):
            module.n_ops += n_ops
            module.duration_ns += spent or 0
            if phase == "backward":
                module.backward = max(module.backward, state, key=_rank)
            elif phase != "optimizer":
                module.forward = max(module.forward, state, key=_rank)
            if absmax is not None:
                module.absmax = max(module.absmax or 0.0, absmax)
            if first_bad is not None:
                module.first_bad = min(first_bad, module.first_bad or first_bad)
            module.first_op = first_op if module.first_op < 0 else min(module.first_op, first_op)
    return root


def _way(root: Module, path: str) -> Iterator[Module]:
    """Yield the module of a path and all around it, the outermost first."""
    yield root
    here = root
    parts = path.replace("/", ".").split(".") if path else ["(outside of modules)"]
    for depth, part in enumerate(parts[:64], 1):
        if part not in here.children:
            whole = f"{here.path}.{part}" if here.path else part
            here.children[part] = Module(whole if path else "", part, depth)
        here = here.children[part]
        yield here


def visible(root: Module) -> list[Module]:
    """Return the modules to list: those whose parents are all expanded."""
    found: list[Module] = []

    def walk(module: Module) -> None:
        found.append(module)
        if module.expanded:
            for child in module.children.values():
                walk(child)

    walk(root)
    return found


def expand_to_worst(root: Module) -> Module:
    """Expand the way to the first module whose own values went bad; return that module."""
    here = root
    here.expanded = True
    while True:
        bad = [child for child in here.children.values() if child.first_bad is not None]
        if not bad:
            return here
        here.expanded = True
        here = min(bad, key=lambda module: module.first_bad or 0)


def _rank(state: Health) -> int:
    return state.rank
