"""Finds the op within a TF1 loop that made its result bad.

Nothing inside such a loop can be fetched. In a copy of the graph every float within is given a
`CheckNumerics`; the first to object names the op, and stops the copy's run.
"""

from __future__ import annotations

import re
from typing import Any

from tensorflow.python.framework import errors_impl

from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.session_checks import SCOPE
from tracelens_tensorflow.session_copy import Copy, Look
from tracelens_tensorflow.session_held import is_bad

_ENDS = ("Exit", "RefExit")
_PLUMBING = frozenset(
    "Enter RefEnter Merge RefMerge Switch RefSwitch NextIteration RefNextIteration Exit RefExit "
    "LoopCond Identity".split()
)
_OBJECTION = re.compile(rf"{SCOPE}check/(\S+):(\d+) : Tensor had")


def look_into_loops(session: Any, look: Look) -> None:
    """Fill in which ops within a run's loops made the loops' results bad.

    Args:
        session: the program's session.
        look: the run.
    """
    plan = look.run.plan
    ends = [
        op for op in look.ran if op.type in _ENDS and is_bad(look.values.get(op.outputs[0].name))
    ]
    if not ends:
        return
    within = [op for op in plan.ops if plan.places[op].frame and op.type not in _PLUMBING]
    by_name = {op.name: op for op in within}
    copy = Copy(session, [plan], lambda graph_def: _add_checks(graph_def, within))
    try:
        for op in ends:
            copy.set_variables(look.before)
            try:
                copy.fetch(look.run, [op.outputs[0].name])
            except errors_impl.InvalidArgumentError as error:
                found = _OBJECTION.search(str(error))
                if found is not None and found.group(1) in by_name:
                    look.in_loops[op] = by_name[found.group(1)]
    finally:
        copy.close()


def _add_checks(graph_def: Any, within: list[Any]) -> None:
    """Put a check behind every float that ops within loops put out."""
    checks = {}
    for op in within:
        for tensor in op.outputs:
            if kinds.is_float(tensor) and not kinds.is_handle(tensor):
                source = op.name if not tensor.value_index else tensor.name
                checks[source] = tensor
    names = {
        source: f"{SCOPE}check/{tensor.name.replace(':', '_')}" for source, tensor in checks.items()
    }
    for node in graph_def.node:
        for place, source in enumerate(node.input):
            if source in names:
                node.input[place] = names[source]
    for source, tensor in checks.items():
        node = graph_def.node.add(name=names[source], op="CheckNumerics", input=[source])
        node.attr["T"].type = tensor.dtype.base_dtype.as_datatype_enum
        node.attr["message"].s = f"{SCOPE}check/{tensor.name}".encode()
