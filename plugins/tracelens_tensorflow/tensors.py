"""Reads eager tensors where they lie: kind, layout, statistics; a variable through its handle."""

from __future__ import annotations

from typing import Any

from tensorflow.core.framework import types_pb2
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context
from tensorflow.python.framework import dtypes

from tracelens import stats
from tracelens.events import Stats

RESOURCE = types_pb2.DT_RESOURCE
VARIANT = types_pb2.DT_VARIANT

_NARROW = frozenset(
    getattr(types_pb2, name)
    for name in (
        "DT_BFLOAT16", "DT_FLOAT8_E5M2", "DT_FLOAT8_E4M3FN", "DT_FLOAT8_E4M3FNUZ",
        "DT_FLOAT8_E4M3B11FNUZ", "DT_FLOAT8_E5M2FNUZ",
    )
    if hasattr(types_pb2, name)
)  # fmt: skip
"""Floats that numpy does not know: they are widened to be read, which changes no value."""

FLOATS = _NARROW | {
    types_pb2.DT_HALF, types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_COMPLEX64,
    types_pb2.DT_COMPLEX128,
}  # fmt: skip
"""Enum values of the dtypes that can hold a NaN."""

_names: dict[int, str] = {}
_devices: dict[str, str] = {}


def is_float(tensor: Any) -> bool:
    """Tell whether an eager tensor's dtype can hold a NaN."""
    return tensor._datatype_enum() in FLOATS


def array_of(tensor: Any) -> Any | None:
    """Return a floating eager tensor as an array without copying it, if it lies on the host.

    Returns:
        ``None`` if it holds no floats, no elements, or cannot be read.
    """
    kind = tensor._datatype_enum()
    if kind not in FLOATS:
        return None
    try:
        array = tensor._numpy()
    except Exception:  # A tensor whose op failed, or of another worker.
        return None
    if not getattr(array, "size", 0):
        return None
    return array.astype("float32") if kind in _NARROW else array


def is_bad(tensor: Any) -> bool:
    """Tell whether an eager tensor, or the variable of a handle, holds a NaN or an Inf."""
    tensor = seen(tensor)
    array = array_of(tensor) if tensor is not None else None
    return array is not None and stats.check(array) == 1


def seen(tensor: Any) -> Any | None:
    """Return the tensor to look at: a variable's value for its handle, ``None`` for none."""
    kind = tensor._datatype_enum()
    if kind == RESOURCE:
        dtype = variable_dtype(tensor)
        return read_variable(tensor, dtype) if dtype else None
    return None if kind == VARIANT else tensor


def variable_dtype(handle: Any) -> int:
    """Return the dtype's enum of the variable that an eager handle refers to, 0 if to none."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or not data.shape_and_type:
        return 0
    return int(data.shape_and_type[0].dtype)


def read_variable(handle: Any, dtype: int) -> Any | None:
    """Return a variable's value by reference, ``None`` if it has none yet.

    The runtime copies a buffer that somebody holds before it writes to the variable.
    """
    ctx = context.context()
    device = handle.backing_device
    try:
        value = pywrap_tfe.TFE_Py_Execute(
            ctx._handle, device, "ReadVariableOp", [handle], ("dtype", dtype), 1
        )[0]
        if 0 in value.shape:
            # One that a compiled function made and has not initialised yet reads as empty.
            given = pywrap_tfe.TFE_Py_Execute(
                ctx._handle, device, "VarIsInitializedOp", [handle], (), 1
            )[0]
            return value if given else None
        return value
    except Exception:
        return None


def write_variable(handle: Any, value: Any) -> None:
    """Make a variable hold a tensor, by reference."""
    ctx = context.context()
    attrs = ("dtype", value._datatype_enum(), "validate_shape", False)
    pywrap_tfe.TFE_Py_Execute(
        ctx._handle, handle.backing_device, "AssignVariableOp", [handle, value], attrs, 0
    )


def device_of(tensor: Any) -> str:
    """Return the short name of a tensor's device: ``"cpu"``, ``"gpu:0"``."""
    full = tensor.device
    short = _devices.get(full)
    if short is None:
        kind, _, number = full.rpartition("/device:")[2].lower().partition(":")
        short = _devices[full] = (
            kind if kind == "cpu" and number in ("", "0") else f"{kind}:{number}"
        )
    return short


class TensorFlowTensors:
    """Reads TensorFlow's tensors for the core's record writer.

    A handle of a variable stands for what the variable holds.

    Attributes:
        parameters: ``_id`` of the tensors that hold a trainable variable's value, and of the
            handles of such variables.
    """

    def __init__(self) -> None:
        self.parameters: set[int] = set()

    def layout_of(self, tensor: Any) -> list[Any] | None:
        """Return ``[dtype, [sizes], device]``, ``None`` for what is not a dense tensor."""
        kind = tensor._datatype_enum()
        if kind == VARIANT:
            return None
        if kind == RESOURCE:
            value = seen(tensor)
            return self.layout_of(value) if value is not None else None
        name = _names.get(kind)
        if name is None:
            name = _names[kind] = dtypes.as_dtype(kind).name
        return [name, list(tensor._shape_tuple()), device_of(tensor)]

    def measure(self, tensor: Any) -> Stats | None:
        """Return a tensor's statistics, ``None`` for what holds no floats."""
        value = seen(tensor)
        array = array_of(value) if value is not None else None
        return stats.measure(array) if array is not None else None

    def first_bad(self, tensor: Any) -> tuple[int, ...]:
        """Return the flat indices of its first NaN or Inf elements."""
        value = seen(tensor)
        array = array_of(value) if value is not None else None
        return stats.first_bad(array) if array is not None else ()

    def is_parameter(self, tensor: Any) -> bool:
        """Tell whether it is, or was read from, a trainable variable."""
        return tensor._id in self.parameters
