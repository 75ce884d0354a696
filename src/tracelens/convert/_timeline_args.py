"""What a timeline tells of an op or a mark beside its name and time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.events import Op, TensorRecord


def op_key_args(op: Op) -> dict[str, Any]:
    """Return where an op stands: its id, step, module, source, parent and forward op."""
    args: dict[str, Any] = {"op_id": op.op_id, "step": op.step}
    if op.module:
        args["module"] = op.module
    if op.source is not None:
        args["source"] = f"{op.source.file}:{op.source.line} in {op.source.function}"
        if op.source.code:
            args["code"] = op.source.code
    if op.parent_id >= 0:
        args["parent_id"] = op.parent_id
    if op.fwd_op_id >= 0:
        args["forward_op_id"] = op.fwd_op_id
    return args


def op_args(op: Op) -> dict[str, Any]:
    """Return ``op_key_args`` and the op's tensors."""
    args = op_key_args(op)
    if op.inputs:
        args["inputs"] = [_tensor_text(tensor) for tensor in op.inputs]
    if op.outputs:
        args["outputs"] = [_tensor_text(tensor) for tensor in op.outputs]
    return args


def mark_name(event: dict[str, Any]) -> str:
    """Return what is written on a finding, sink or note."""
    kind = str(event.get("t", "note"))
    if kind == "sink":
        return f"non-finite {event.get('sink', 'value')} {event.get('name', '')}".rstrip()
    return str(event.get("message") or event.get("rule") or event.get("kind") or kind)


def _tensor_text(tensor: TensorRecord) -> str:
    text = tensor.dtype or "tensor"
    if tensor.shape is not None:
        text += str(list(tensor.shape))
    if tensor.stats is not None and tensor.stats.nonfinite:
        stats = tensor.stats
        text += f" nan={stats.nan} +inf={stats.posinf} -inf={stats.neginf}"
    return text


def plain(value: Any) -> Any:
    """Replace the floats that JSON cannot hold by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
