"""What the record writer of the core has to know of torch's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tracelens import oprecords, stats
from tracelens.events import Stats
from tracelens.oprecords import OpRun, Pairs, thread_id, value_of

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter

__all__ = ["OpRun", "OpWriter", "Pairs", "thread_id", "value_of"]


class OpWriter(oprecords.OpWriter):
    """Writes ops whose tensors are torch's.

    Args:
        writer: the shard.
    """

    def __init__(self, writer: ShardWriter) -> None:
        super().__init__(writer, TorchTensors())


class TorchTensors:
    """Reads torch's tensors for the core."""

    def layout_of(self, tensor: Any) -> list[Any] | None:
        """Return ``[dtype, [sizes], device]``, ``None`` for what is not a dense tensor."""
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            return None
        dtype = str(tensor.dtype).removeprefix("torch.")
        return [dtype, [int(size) for size in tensor.shape], str(tensor.device)]

    def measure(self, tensor: Any) -> Stats | None:
        """Return a tensor's statistics, ``None`` for what holds no floats or is not here."""
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu":
            return None
        if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
            return None
        return stats.measure(tensor)

    def first_bad(self, tensor: Any) -> tuple[int, ...]:
        """Return the flat indices of its first NaN or Inf elements."""
        return stats.first_bad(tensor)

    def is_parameter(self, tensor: Any) -> bool:
        """Tell whether it is a leaf that requires grad."""
        return bool(tensor.is_leaf and tensor.requires_grad)
