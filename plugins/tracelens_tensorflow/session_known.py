"""What is true of an op of a plan in every run, looked up once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracelens.events import OpFlag, Phase
from tracelens_tensorflow import facts
from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.session_functions import makes_lists, runs_functions
from tracelens_tensorflow.session_plan import Plan

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter

_SKIPPED = frozenset({"NoOp", "VarHandleOp", "VariableV2", "Variable", "VarIsInitializedOp"})
_LOOP_ENDS = frozenset({"Exit", "RefExit"})
_DATA_PREFIXES = ("IteratorGetNext", "QueueDequeue", "ReaderRead")

Sizes = tuple[int, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One input or output of an op.

    Attributes:
        name: the tensor's name.
        variable: of a handle, its variable.
        dtype: its dtype.
        sizes: its shape, if the graph tells.
    """

    name: str
    variable: Any
    dtype: str
    sizes: Sizes


@dataclass(frozen=True, slots=True, eq=False)
class KnownOp:
    """One op.

    Attributes:
        name: its name.
        reads: the variable that it only hands on.
        writes: the variables that it writes.
        inputs: what it reads; handles of anything but variables are left out.
        outputs: what it puts out.
        site: interned site.
        phase: part of a step.
        forward: of a backward op, its forward op.
        flags: ``OpFlag`` bits.
        device: where the program wants it.
        functions: it is a call, branch or loop.
        lists: it puts out what a session cannot hand over.
    """

    name: str
    reads: Any
    writes: tuple[Any, ...]
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    site: int
    phase: Phase
    forward: Any
    flags: int
    device: str
    functions: bool
    lists: bool


def known_ops(plan: Plan, writer: ShardWriter) -> dict[Any, KnownOp]:
    """Return what is known of the ops of a plan that are recorded, by op."""
    return {op: _known(op, plan, writer) for op in plan.ops if op.type not in _SKIPPED}


def _known(op: Any, plan: Plan, writer: ShardWriter) -> KnownOp:
    told = facts.facts_of(op)
    writes = tuple(kinds.written_by(op)) if kinds.is_write(op) else ()
    phase = Phase.DATA if op.type.startswith(_DATA_PREFIXES) else told.phase
    if writes and phase is not Phase.BACKWARD and plan.is_step:
        phase = Phase.OPTIMIZER
    flags = told.flags | (OpFlag.INPLACE if writes else OpFlag(0))
    if op.type in _LOOP_ENDS:
        # No session hands over what was within the loop: this line is the nearest known.
        flags |= OpFlag.INEXACT_SOURCE | OpFlag.UNSEEN_INPUTS
    if op.type == "Const":
        flags |= OpFlag.CONSTANT
    inputs = (_slot(tensor) for tensor in op.inputs)
    return KnownOp(
        op.name,
        kinds.read_variable(op),
        writes,
        tuple(slot for slot in inputs if slot is not None),
        tuple(slot for slot in map(_output, op.outputs) if slot is not None),
        facts.site_of(op, writer),
        phase,
        told.forward,
        int(flags),
        short_device(op.device),
        runs_functions(op),
        makes_lists(op),
    )


def _slot(tensor: Any) -> Slot | None:
    if not kinds.is_handle(tensor):
        return _output(tensor)
    variable = kinds.variable_of(tensor)
    return None if variable is None else Slot(tensor.name, variable, "", None)


def _output(tensor: Any) -> Slot:
    shape = tensor.shape
    sizes = tuple(shape.as_list()) if shape.is_fully_defined() else None
    return Slot(tensor.name, None, tensor.dtype.base_dtype.name, sizes)


def short_device(name: str) -> str:
    """Return a device's short name; what is placed nowhere runs on the CPU.

    Examples:
        >>> short_device("/job:worker/task:0/device:GPU:1"), short_device("")
        ('cuda:1', 'cpu')
    """
    kind, _, number = name.rpartition("/device:")[2].lower().partition(":")
    if kind in ("", "cpu"):
        return "cpu"
    return f"{'cuda' if kind == 'gpu' else kind}:{number or 0}"
