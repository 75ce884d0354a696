"""One exact check of many tensors, and the description of one that failed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import _unsafe_preserve_version_counter

from tracelens import stats

_CHECKED_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
_FIRST_BAD = 4
_GLANCE = 4096


class FusedCheck:
    """Answers "is any of these tensors non-finite?" with one launch a device and dtype.

    `torch._amp_foreach_non_finite_check_and_unscale_` is exact (no overflow of a sum can fool
    it) and leaves its answer on the device. It multiplies the tensors by one in place, which
    changes no bit of a finite value; version counters are put back.
    """

    def __init__(self) -> None:
        self._one: dict[torch.device, torch.Tensor] = {}

    def flag(self, tensors: Sequence[torch.Tensor], flag: torch.Tensor) -> None:
        """Set the flag to 1 if any tensor on its device holds a NaN or an Inf.

        Args:
            tensors: dense tensors on the flag's device; those of other dtypes than the
                floating ones are passed over.
            flag: float32 scalar; left alone if all is finite.
        """
        device = flag.device
        one = self._one.get(device)
        if one is None:
            one = self._one[device] = torch.ones((), dtype=torch.float32, device=device)
        groups: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.dtype in _CHECKED_DTYPES:
                groups.setdefault(tensor.dtype, []).append(tensor)
        with torch.no_grad():
            for group in groups.values():
                with _unsafe_preserve_version_counter(tuple(group)):
                    torch._amp_foreach_non_finite_check_and_unscale_(group, flag, one)

    def any(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Return whether any tensor is non-finite; waits for the device.

        CPU tensors are read in place by the statistics extension where it is built.
        """
        if stats.HAS_NATIVE and all(tensor.is_cpu for tensor in tensors):
            if stats.native.first_nonfinite(list(tensors)) >= 0:
                return True
            tensors = [tensor for tensor in tensors if tensor.layout is not torch.strided]
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for tensor in tensors:
            values = dense(tensor)
            if values is not None:
                by_device.setdefault(values.device, []).append(values)
        for device, group in by_device.items():
            flag = torch.zeros((), dtype=torch.float32, device=device)
            self.flag(group, flag)
            if flag.item():
                return True
        return False


def dense(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the strided tensor that holds a gradient's values, ``None`` if there is none.

    A sparse tensor gives its values, a distributed one this rank's part.
    """
    local = getattr(tensor, "_local_tensor", None)
    if isinstance(local, torch.Tensor):
        tensor = local
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    return tensor


def is_nonfinite(tensor: torch.Tensor) -> bool:
    """Return whether one tensor holds a NaN or an Inf."""
    if stats.HAS_NATIVE and tensor.is_cpu and tensor.layout is torch.strided:
        found = int(stats.native.check(tensor))
        if found >= 0:
            return bool(found)
    values = dense(tensor)
    if values is None or not (values.is_floating_point() or values.is_complex()):
        return False
    return not bool(torch.isfinite(values).all())


def has_finite(tensor: torch.Tensor) -> bool:
    """Return whether any element is finite."""
    values = dense(tensor)
    if values is None or values.numel() == 0:
        return True
    start = values.reshape(-1)[:_GLANCE]  # The start of a good tensor answers for all of it.
    return bool(torch.isfinite(start).any()) or bool(torch.isfinite(values).any())


def describe(tensor: torch.Tensor) -> dict[str, Any]:
    """Return the ``dtype shape stats first_bad`` keys of a ``sink`` event for a tensor.

    Counts are exact. ``vmin`` and ``vmax`` are over the finite elements, ``None`` without any.
    """
    values = dense(tensor)
    fields: dict[str, Any] = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }
    if values is None:
        return fields
    with torch.no_grad():
        finite = torch.isfinite(values)
        good = values[finite]
        real = good.abs() if good.is_complex() else good
        nan = int(torch.isnan(values).sum())
        bad = int(values.numel()) - int(finite.sum())
        positive = 0 if values.is_complex() else int(torch.isposinf(values).sum())
        first_bad = torch.nonzero(~finite.reshape(-1)).reshape(-1)[:_FIRST_BAD]
        fields["stats"] = {
            "numel": int(values.numel()),
            "nan": nan,
            "posinf": positive,
            "neginf": bad - nan - positive,
            "vmin": float(real.min()) if real.numel() else None,
            "vmax": float(real.max()) if real.numel() else None,
        }
        fields["first_bad"] = [int(index) for index in first_bad.tolist()]
    return fields


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are equal bit for bit, the sign of zero included.

    One NaN is as good as another: its sign and payload say nothing.
    """
    first, second = first.detach(), second.detach()
    if (first.shape, first.dtype, first.layout) != (second.shape, second.dtype, second.layout):
        return False
    if first.layout is torch.sparse_coo:
        first, second = first.coalesce(), second.coalesce()
        return bool(torch.equal(first.indices(), second.indices())) and same_bits(
            first.values(), second.values()
        )
    if first.is_floating_point():
        nan = torch.isnan(first)
        if not torch.equal(nan, torch.isnan(second)):
            return False
        first, second = first.masked_fill(nan, 0), second.masked_fill(nan, 0)
    return first.numel() == 0 or bool(torch.equal(_bytes(first), _bytes(second)))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)
