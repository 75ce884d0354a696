"""The records that plugins produce and faces read: one vocabulary for every framework.

An op is one framework operation as executed. A value is what one op wrote into one
output; its id is ``op_id * 16 + slot`` (slots past 15 share 15), so the producer of a value
is ``value_id >> 4``. A view has the value id of what it views: it writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

NO_ID = -1
"""Marks an absent id (no parent op, no forward op, a value no recorded op wrote)."""

STRUCTURAL = "structural"
"""``verdict`` of a finding about how a program is built or run, not about its values."""

SLOT_BITS = 4
MAX_SLOT = (1 << SLOT_BITS) - 1


class RecordKind(IntEnum):
    """What a ring record holds."""

    OP = 0
    STAT = 1
    """Statistics of one tensor of an op; the op's first output rides in its OP record."""
    INPUTS = 2
    """Four more input value ids of an op that has more than four."""


class Phase(IntEnum):
    """The part of a training step that an op belongs to."""

    OTHER = 0
    DATA = 1
    FORWARD = 2
    BACKWARD = 3
    OPTIMIZER = 4

    @property
    def label(self) -> str:
        """The lower-case word used in reports and tables (``"forward"``)."""
        return self.name.lower()


class Role(IntEnum):
    """Which side of an op a tensor stands on."""

    OUTPUT = 0
    INPUT = 1


class OpFlag(IntFlag):
    """Facts about an op that its counts alone do not tell."""

    HIT = 1
    """An output held a NaN or an Inf when it was checked."""
    CHECKED = 2
    """Its outputs were checked for non-finite values."""
    VIEW = 4
    """Its output aliases its input and nothing was written."""
    INPLACE = 8
    """It wrote into one of its inputs."""
    GARBAGE = 16
    """Its output is uninitialised memory (``torch.empty``): never a finding."""
    CONSTANT = 32
    """A non-finite Python scalar was an argument, or the op only fills with a constant."""
    HARMLESS = 64
    """It cannot make a non-finite output from finite inputs (``relu``, ``cat``, ``where`` …)."""
    COMPOSITE = 128
    """It only calls other recorded ops."""
    INEXACT_SOURCE = 256
    """The source line is the nearest known one, not certainly the one that issued the op."""
    COMPILED = 512
    """It ran inside, or stands for, a compiled region."""
    REPLAYED = 1024
    """Recorded while a step was replayed, not while it first ran."""
    UNSEEN_INPUTS = 2048
    """Some inputs could not be identified (sparse, wrapped or symbolic tensors)."""
    PROFILED = 4096
    """A profiler tells when it ran and how long, and nothing of its tensors."""


class TensorFlag(IntFlag):
    """Facts about one tensor of an op (kept in a STAT record's ``flags``)."""

    PARAMETER = 1
    """A leaf that requires grad."""
    SAMPLED = 2
    """Statistics come from a sample, not from every element."""
    OVERWRITTEN = 4
    """An input that the op wrote into before it was measured: the counts are the output's."""


@dataclass(frozen=True, slots=True)
class Source:
    """The user's own frame that issued an op.

    Attributes:
        file: path as Python reported it.
        line: 1-based line number.
        function: qualified function name.
        code: the text of the line when it was recorded, stripped; empty if unknown.
    """

    file: str
    line: int
    function: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of one tensor.

    ``vmin``, ``vmax``, ``mean``, ``std`` and ``l2`` are over the finite elements only and are
    ``None`` where not computed; counts are of elements.
    """

    numel: int
    nan: int
    posinf: int
    neginf: int
    zero: int | None = None
    vmin: float | None = None
    vmax: float | None = None
    mean: float | None = None
    std: float | None = None
    l2: float | None = None
    sampled: bool = False

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or Inf."""
        return self.nan + self.posinf + self.neginf


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One input or output of an op.

    Attributes:
        value_id: ``producer op_id * 16 + slot``, or ``NO_ID`` if no recorded op wrote it.
        dtype: framework-neutral name (``"float32"``); empty if not recorded.
        shape: sizes; ``None`` if not recorded.
        device: ``"cpu"``, ``"cuda:0"``; empty if not recorded.
        stats: ``None`` if the tensor was not measured.
        first_bad: flat (row-major) indices of the first non-finite elements, at most four.
        parameter: it is a leaf that requires grad.
        overwritten: an input that the op had written into before it was measured.
    """

    value_id: int = NO_ID
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    device: str = ""
    stats: Stats | None = None
    first_bad: tuple[int, ...] = ()
    parameter: bool = False
    overwritten: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """One framework operation as executed.

    Times are nanoseconds since the manifest's ``epoch_unix_ns``; ``duration_ns`` is ``None``
    where it was not measured (guard level keeps no durations).
    """

    op_id: int
    name: str
    phase: Phase
    step: int
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    flags: OpFlag = OpFlag(0)
    module: str = ""
    source: Source | None = None
    parent_id: int = NO_ID
    fwd_op_id: int = NO_ID
    start_ns: int = 0
    duration_ns: int | None = None
    tid: int = 0
    rank: int = 0
