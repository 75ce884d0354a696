"""Find the tensors in whatever a program calls a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

MAX_TENSORS = 256
MAX_DEPTH = 8
MAX_INDICES = 65_536


def tensors_in(value: Any, limit: int = MAX_TENSORS) -> list[torch.Tensor]:
    """Return the tensors of a nested batch, each once, in the order in which they are met.

    Tuples, lists, mappings, dataclasses and plain objects that keep tensors in their
    ``__dict__`` are entered; modules, iterators and everything else are not.

    Args:
        value: a batch, or the arguments of a step.
        limit: stop after this many tensors.
    """
    found: list[torch.Tensor] = []
    _collect(value, found, set(), limit, MAX_DEPTH)
    return found


def _collect(value: Any, found: list[torch.Tensor], seen: set[int], limit: int, depth: int) -> None:
    if isinstance(value, torch.Tensor):
        if id(value) not in seen and len(found) < limit:
            seen.add(id(value))
            found.append(value)
        return
    if (
        depth == 0
        or len(found) >= limit
        or value is None
        or isinstance(value, (str, bytes, int, float, complex, type, torch.nn.Module))
    ):
        return
    if id(value) in seen:
        return
    if isinstance(value, (tuple, list)):
        parts = value
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif type(value).__module__ not in ("builtins", "torch") and not callable(value):
        parts = list(getattr(value, "__dict__", {}).values())
    else:
        return
    seen.add(id(value))
    for part in parts:
        _collect(part, found, seen, limit, depth - 1)


def plain_indices(index: Any) -> list[int] | None:
    """Return a sampler's indices as integers, ``None`` if they are not integers or too many.

    Args:
        index: what the sampler yielded: a list of dataset indices, or one of them.

    Examples:
        >>> plain_indices([3, 1]), plain_indices(7), plain_indices(["a"]), plain_indices([None])
        ([3, 1], [7], None, None)
    """
    if isinstance(index, torch.Tensor):
        if index.is_floating_point() or index.numel() > MAX_INDICES:
            return None
        return [int(i) for i in index.flatten().tolist()]
    if isinstance(index, (list, tuple, range)):
        if len(index) > MAX_INDICES:
            return None
        try:
            return [i.__index__() for i in index]
        except (AttributeError, TypeError):
            return None
    try:
        return [index.__index__()]
    except (AttributeError, TypeError):
        return None


def batch_size(tensors: list[torch.Tensor], indices: list[int] | None) -> int | None:
    """Return how many samples a batch holds: its indices', else its first tensor's length."""
    if indices is not None:
        return len(indices)
    for tensor in tensors:
        if tensor.dim():
            return int(tensor.shape[0])
    return None
