"""What tensors of a TF1 run held, as NumPy arrays, and how the core reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tracelens import stats
from tracelens.events import Stats


@dataclass(slots=True, eq=False)
class Held:
    """What a tensor held.

    Attributes:
        array: its values, ``None`` if they were not fetched.
        device: where it was.
        parameter: it is a trainable variable's value.
        dtype: its dtype, where nothing was fetched.
        sizes: its shape, where nothing was fetched but the graph tells.
    """

    array: Any
    device: str = ""
    parameter: bool = False
    dtype: str = ""
    sizes: tuple[int, ...] | None = None
    _stats: Stats | None = None
    _measured: bool = False

    def measure(self) -> Stats | None:
        """Return its statistics, ``None`` if it holds no floats; measured once."""
        if not self._measured:
            self._measured = True
            floats = as_floats(self.array)
            self._stats = stats.measure(floats) if floats is not None else None
        return self._stats


class HeldTensors:
    """Reads arrays for the core's op writer."""

    def layout_of(self, tensor: Held) -> list[Any] | None:
        """Return ``[dtype, [sizes], device]``, ``None`` where nothing is known."""
        array = tensor.array
        if not isinstance(array, np.ndarray | np.generic):
            if not tensor.dtype:
                return None
            sizes = None if tensor.sizes is None else list(tensor.sizes)
            return [tensor.dtype, sizes, tensor.device]
        return [_name_of(array.dtype), list(array.shape), tensor.device]

    def measure(self, tensor: Held) -> Stats | None:
        """Return the statistics of an array of floats."""
        return tensor.measure()

    def first_bad(self, tensor: Held) -> tuple[int, ...]:
        """Return the flat indices of its first NaN or Inf elements."""
        array = as_floats(tensor.array)
        return stats.first_bad(array) if array is not None else ()

    def is_parameter(self, tensor: Held) -> bool:
        """Tell whether it is a trainable variable's value."""
        return tensor.parameter


def as_floats(value: Any) -> Any:
    """Return an array that can be measured, ``None`` for what holds no floats.

    NumPy itself has no bfloat16: such an array is widened.
    """
    if not isinstance(value, np.ndarray | np.generic) or not value.size:
        return None
    array = np.asarray(value)
    if array.dtype.kind in "fc":
        return array
    if array.dtype.name.startswith(("bfloat16", "float8")):
        return array.astype(np.float32)
    return None


def is_bad(array: Any) -> bool:
    """Tell whether an array holds a NaN or Inf."""
    floats = as_floats(array)
    return floats is not None and stats.check(floats) == 1


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name
