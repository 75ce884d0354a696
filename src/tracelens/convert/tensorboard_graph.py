"""The modules and ops of one step as TensorBoard's graph, with when and how long each op ran."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tracelens.events import SLOT_BITS, OpFlag

if TYPE_CHECKING:
    from tracelens.convert.tensorboard import Run

MAX_OPS = 5000
"""Ops of a graph: TensorBoard's layout takes minutes for more."""

_PASSING = int(OpFlag.COMPOSITE | OpFlag.VIEW)
_SCOPES = {"backward": "gradients", "optimizer": "optimizer", "data": "data"}
_OPS = """
    SELECT op_id, name, module, phase, in_ids, shapes, device, start_ns, duration_ns
    FROM ops WHERE {where} AND step = {step} AND (flags & {passing}) = 0
    ORDER BY op_id LIMIT {limit}"""
_STEP = """
    SELECT step FROM ops WHERE {where} AND step >= 0 AND (flags & {passing}) = 0
    GROUP BY step ORDER BY bool_or(phase = 'backward') DESC, step LIMIT 1"""


def write(run: Run) -> None:
    """Write the graph of the first step that has a backward pass, else of the first one."""
    steps = run.reader.sql(_STEP.format(where=run.where(), passing=_PASSING))
    if not steps:
        return
    step = int(steps[0][0])
    text = _OPS.format(where=run.where(), step=step, passing=_PASSING, limit=MAX_OPS)
    rows = run.reader.sql(text)
    names = node_names([(row[1], row[2], row[3]) for row in rows])
    by_id = {row[0]: name for row, name in zip(rows, names, strict=True)}
    at_s = run.wall_time_s(rows[0][7])
    run.events.graph(at_s, _graph(rows, by_id))
    if any(row[8] is not None for row in rows):
        run.events.run_metadata(at_s, step, f"step {step}", _times(rows, by_id))


def node_names(ops: list[tuple[str, str | None, str]]) -> list[str]:
    """Return a unique name for each op, in the scope of its module and its phase.

    Args:
        ops: name, module path and phase of each.

    Examples:
        >>> node_names([("aten::mm", "head.0", "forward"), ("aten::mm", "head.0", "forward"),
        ...             ("aten::mm", "head.0", "backward")])
        ['head/0/mm', 'head/0/mm_1', 'gradients/head/0/mm']
    """
    scopes: set[str] = set()
    wanted = []
    for name, module, phase in ops:
        parts = [_SCOPES[phase]] if phase in _SCOPES else []
        parts += [part for part in re.split(r"[./]", module or "") if part]
        path = [_clean(part) for part in (*parts, name.rsplit("::", 1)[-1])]
        wanted.append("/".join(path))
        scopes.update("/".join(path[:at]) for at in range(1, len(path)))
    used: dict[str, int] = {}
    taken = set(scopes)
    found = []
    for name in wanted:
        unique = name
        while unique in taken:
            used[name] = used.get(name, 0) + 1
            unique = f"{name}_{used[name]}"
        taken.add(unique)
        found.append(unique)
    return found


def _graph(rows: list[tuple[Any, ...]], by_id: dict[int, str]) -> bytes:
    from tensorboard.compat.proto import graph_pb2

    graph = graph_pb2.GraphDef()
    graph.versions.producer = 22
    for op_id, name, _, _, in_ids, shapes, device, *_ in rows:
        inputs = []
        for value_id in in_ids or ():
            producer, slot = value_id >> SLOT_BITS, value_id & ((1 << SLOT_BITS) - 1)
            # Only earlier ops: a graph that is not acyclic cannot be laid out.
            if producer in by_id and producer < op_id:
                inputs.append(by_id[producer] if slot == 0 else f"{by_id[producer]}:{slot}")
        node = graph.node.add(
            name=by_id[op_id], op=name.rsplit("::", 1)[-1], input=list(dict.fromkeys(inputs))
        )
        node.device = device or ""
        for sizes in _sizes(shapes):
            shape = node.attr["_output_shapes"].list.shape.add()
            for size in sizes:
                shape.dim.add(size=size)
    encoded: bytes = graph.SerializeToString()
    return encoded


def _times(rows: list[tuple[Any, ...]], by_id: dict[int, str]) -> bytes:
    from tensorboard.compat.proto import config_pb2

    metadata = config_pb2.RunMetadata()
    devices: dict[str, Any] = {}
    for op_id, name, _, _, _, _, device, start_ns, duration_ns in rows:
        if duration_ns is None:
            continue
        on = device or "cpu"
        if on not in devices:
            devices[on] = metadata.step_stats.dev_stats.add(device=on)
        devices[on].node_stats.add(
            node_name=by_id[op_id],
            timeline_label=name,
            all_start_micros=start_ns // 1000,
            op_end_rel_micros=max(duration_ns // 1000, 1),
            all_end_rel_micros=max(duration_ns // 1000, 1),
        )
    encoded: bytes = metadata.SerializeToString()
    return encoded


def _sizes(shapes: str | None) -> list[list[int]]:
    """Return the output sizes in an op's JSON; what is no list of sizes is left out."""
    try:
        told = json.loads(shapes or "[]")
    except (ValueError, RecursionError):
        return []
    return [
        sizes
        for sizes in (told if isinstance(told, list) else ())
        if isinstance(sizes, list) and all(type(s) is int and 0 <= s < 1 << 62 for s in sizes)
    ]


def _clean(part: str) -> str:
    """Return a name with the characters that TensorFlow allows in one."""
    cleaned = re.sub(r"[^A-Za-z0-9_.\\-]", "_", part)
    return cleaned.lstrip("_-/\\") or "op"
