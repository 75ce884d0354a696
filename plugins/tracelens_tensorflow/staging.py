"""Outputs of ops inside loops and branches, handed out of a running function for a replay.

A function can return what its own ops gave, but not what an op in a loop's body gave in each
iteration. There the outputs are put into a staging area of TensorFlow's (a queue with a name, no
copy), which is emptied after the call.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensorflow.core.framework import node_def_pb2
from tensorflow.python.ops import gen_data_flow_ops

from tracelens_tensorflow.fdef import PREFIX, Editor

if TYPE_CHECKING:
    import tensorflow as tf

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Area:
    """A staging area for the outputs of one op.

    Attributes:
        op: the op.
        name: of the area.
    """

    op: tf.Operation
    name: str


def stage(editor: Editor, op: tf.Operation) -> Area:
    """Let a function put the outputs of an op into an area of their own."""
    area = Area(op, f"{PREFIX}area_{next(_numbers)}")
    node = node_def_pb2.NodeDef(name=area.name, op="Stage", device=op.device)
    node.input.extend(editor.ref(tensor) for tensor in op.outputs)
    node.attr["dtypes"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in op.outputs)
    node.attr["capacity"].i = node.attr["memory_limit"].i = 0
    node.attr["container"].s = b""
    node.attr["shared_name"].s = area.name.encode()
    editor.add_node(node)
    editor.keep(node.name)
    return area


def take(area: Area) -> list[list[Any]]:
    """Empty an area; return the outputs of each run of the op, in the order they came."""
    dtypes = [tensor.dtype for tensor in area.op.outputs]
    count = int(gen_data_flow_ops.stage_size(dtypes=dtypes, shared_name=area.name))
    return [
        list(gen_data_flow_ops.unstage(dtypes=dtypes, shared_name=area.name)) for _ in range(count)
    ]
