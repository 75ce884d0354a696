"""Which ops of a TF1 graph write variables, draw, fetch data, or act on the world."""

from __future__ import annotations

from typing import Any

from tensorflow.python.framework import dtypes

FLOATS = frozenset({dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64})

_WRITE_PREFIXES = (
    "ResourceApply",
    "ResourceSparseApply",
    "ResourceScatter",
    "Apply",
    "SparseApply",
    "Scatter",
)
_WRITES = frozenset(
    {
        "Assign",
        "AssignAdd",
        "AssignSub",
        "AssignVariableOp",
        "AssignAddVariableOp",
        "AssignSubVariableOp",
        "StridedSliceAssign",
        "ResourceStridedSliceAssign",
        "CountUpTo",
        "ResourceCountUpTo",
    }
)
_PURE_SCATTERS = frozenset({"ScatterNd"})
_SETS = frozenset({"Assign", "AssignVariableOp"})
_READS = frozenset({"ReadVariableOp", "Identity"})
_UPDATE_INPUTS = frozenset({"grad", "value", "delta", "updates"})
VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
INITIALISED_TESTS = frozenset({"VarIsInitializedOp", "IsVariableInitialized"})
_WITHIN_A_RUN = (
    "TensorArray",
    "TensorList",
    "EmptyTensorList",
    "Stack",
    "Optional",
    "TemporaryVariable",
)
_ACTS_PREFIXES = ("WriteSummary", "Write", "Save", "MergeV2", "QueueEnqueue", "QueueClose", "Print")
_ACTS = frozenset({"Assert", "Abort", "FlushSummaryWriter", "CloseSummaryWriter"})
_PLAIN_STATEFUL = frozenset({"Placeholder", "NoOp", "StatefulPartitionedCall", "If", "While"})


def is_write(op: Any) -> bool:
    """Tell whether an op writes a variable."""
    return op.type in _WRITES or (
        op.type.startswith(_WRITE_PREFIXES) and op.type not in _PURE_SCATTERS
    )


def is_set(op: Any) -> bool:
    """Tell whether a write puts a whole new value in the variable's place."""
    return op.type in _SETS


def acts(op: Any) -> bool:
    """Tell whether an op prints, writes files, fills queues or stops the program."""
    return acts_by_type(op.type)


def acts_by_type(op_type: str) -> bool:
    """Tell the same by an op's type."""
    return op_type in _ACTS or op_type.startswith(_ACTS_PREFIXES)


def calls_python(op: Any) -> bool:
    """Tell whether an op calls a Python function of the program."""
    return op.type in ("PyFunc", "PyFuncStateless", "EagerPyFunc")


def variable_of(tensor: Any) -> Any | None:
    """Return the variable op that a resource or reference comes from, if there is one."""
    for _ in range(64):
        op = tensor.op
        if op.type in VARIABLES:
            return op
        if not is_handle(tensor) or not op.inputs:
            return None
        tensor = op.inputs[0]
    return None


def is_handle(tensor: Any) -> bool:
    """Tell whether a tensor is a resource or a reference rather than a value."""
    return tensor.dtype == dtypes.resource or tensor.dtype._is_ref_dtype


def read_variable(op: Any) -> Any | None:
    """Return the variable that an op does nothing but read, if it is such an op."""
    if op.type in _READS and op.inputs and is_handle(op.inputs[0]):
        return variable_of(op.inputs[0])
    return None


def written_by(op: Any) -> list[Any]:
    """Return the variables that a write op writes, in order of its inputs."""
    found = (variable_of(tensor) for tensor in op.inputs if is_handle(tensor))
    return [variable for variable in found if variable is not None]


def updates_of(op: Any) -> list[Any]:
    """Return what a write op writes from: gradients, new values, differences."""
    names = [argument.name for argument in op.op_def.input_arg]
    return [
        tensor
        for name, tensor in zip(names, op.inputs, strict=False)
        if name in _UPDATE_INPUTS and is_float(tensor)
    ]


def is_float(tensor: Any) -> bool:
    """Tell whether a tensor holds floats, by value or by reference."""
    return tensor.dtype.base_dtype in FLOATS


def is_source(op: Any) -> bool:
    """Tell whether running an op again need not give the same: data, draws, Python, tables."""
    if op.type in VARIABLES or op.type in _PLAIN_STATEFUL or op.type in INITIALISED_TESTS:
        return False
    if op.type.startswith(_WITHIN_A_RUN) or is_write(op) or acts(op):
        return False
    resources = [t for t in op.inputs if t.dtype in (dtypes.resource, dtypes.variant)]
    foreign = any(variable_of(t) is None and not _within_a_run(t) for t in resources)
    return bool(op.op_def.is_stateful and not resources) or foreign


def _within_a_run(tensor: Any) -> bool:
    for _ in range(64):
        if tensor.op.type.startswith(_WITHIN_A_RUN):
            return True
        if not tensor.op.inputs:
            return False
        tensor = tensor.op.inputs[0]
    return False


def can_fetch(tensor: Any) -> bool:
    """Tell whether a session can hand a tensor over as an array."""
    return tensor.dtype.base_dtype not in (dtypes.resource, dtypes.variant)
