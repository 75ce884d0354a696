"""Reads an op's traceback: the user's line that made it, and the phase its frames tell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tensorflow.python.util import tf_stack

from tracelens.events import Phase, Source
from tracelens.userframes import UserFiles, directory_of, source_at
from tracelens_tensorflow import autographed
from tracelens_tensorflow.statements import line_within

USER_FILES = UserFiles(
    libraries=("tensorflow", "keras", "tf_keras", "tensorboard", "tensorflow_estimator"),
    directories=(directory_of("tensorflow"), Path(__file__).parent),
    parts=(autographed.GENERATED,),
)
"""The test for the user's own files in a process that uses TensorFlow."""


class _Part(IntEnum):
    """What the file of a frame is a part of."""

    NOTHING = 0
    USER = 1
    BACKWARD = 2
    OPTIMIZER = 3
    DATA = 4
    DATA_LOOP = 5
    METRICS = 6
    LOADED = 7
    GENERATED = 8
    FORWARD_MODE = 9


_ENDINGS = {
    "python/eager/backprop.py": _Part.BACKWARD,
    "python/ops/gradients_util.py": _Part.BACKWARD,
    "python/ops/gradients_impl.py": _Part.BACKWARD,
    "python/eager/forwardprop.py": _Part.FORWARD_MODE,
    "python/data/ops/structured_function.py": _Part.DATA,
    # The body of a loop over a dataset is a function of tf.data too, but no part of a pipeline.
    "python/data/ops/dataset_autograph.py": _Part.DATA_LOOP,
    "src/trainers/compile_utils.py": _Part.METRICS,
    "python/keras/metrics.py": _Part.METRICS,
    "saved_model/function_deserialization.py": _Part.LOADED,
    "framework/importer.py": _Part.LOADED,
}
_PHASES = {
    _Part.BACKWARD: Phase.BACKWARD,
    _Part.DATA: Phase.DATA,
    _Part.METRICS: Phase.OTHER,
}
_MAKERS = 12
_LAST_MAKER = "_apply_op_helper"
_NO_MAKERS = frozenset(("wrapper", "error_handler", "op_dispatch_handler", "__call__", "call"))
"""Frames between the user's and the op's: who made the op is among them, these say nothing."""

_OPTIMIZER_CALLS = frozenset(("apply", "apply_gradients", "_distributed_apply", "update_step"))


@dataclass(frozen=True, slots=True)
class Place:
    """What the frames of an op tell.

    Attributes:
        source: the user's innermost line, ``None`` if no frame is the user's.
        exact: False if it is only the nearest line known.
        phase: ``None`` if no frame tells.
        own: the user's line stands below the frames of the gradient machinery: in a backward op
            it is the line of the user's own gradient function.
    """

    source: Source | None
    exact: bool
    phase: Phase | None
    own: bool


def place_of(op: Any) -> Place:
    """Read the frames of an op, from the innermost outwards.

    Args:
        op: a ``tf.Operation``.
    """
    source: Source | None = None
    phase: Phase | None = None
    exact, own, in_loop = True, False, False
    trace = op.traceback or ()  # ops that were rebuilt from a definition have none
    for position in range(len(trace) - 1, -1, -1):
        frame = trace[position]
        part = _parts.get(frame.filename)
        if part is None:
            part = _parts[frame.filename] = _part_of(frame.filename)
        if part is _Part.NOTHING:
            continue
        if part is _Part.USER or part is _Part.GENERATED:
            if source is None:
                source = _source_of(frame)
                own = phase is None
                if source is not None:
                    source, exact = _within(source, exact, op.type, trace, position)
        elif part is _Part.LOADED:
            exact = exact and source is not None
        elif part is _Part.DATA_LOOP:
            in_loop = True
        elif part is _Part.FORWARD_MODE:
            # A forward accumulator uses gradient functions beside each forward op.
            phase = Phase.FORWARD if source is None else phase
        elif phase is None and part is _Part.OPTIMIZER:
            phase = Phase.OPTIMIZER if frame.name in _OPTIMIZER_CALLS else None
        elif phase is None and not (part is _Part.DATA and in_loop):
            phase = _PHASES[part]
        if source is not None and phase is not None:
            break
    return Place(source, exact, phase, own)


def calling_line() -> Source | None:
    """Return the user's innermost line that the calling thread is at, through AutoGraph.

    The frames are those that TensorFlow itself would give an op made here.
    """
    return line_in(tf_stack.extract_stack())


def line_in(trace: Any) -> Source | None:
    """Return the user's innermost line in a stack trace of TensorFlow's, ``None`` without one."""
    for position in range(len(trace) - 1, -1, -1):
        source = _source_of(trace[position])
        if source is not None:
            return source
    return None


def words(source: Source | None) -> str:
    """Return a line as messages name it, with a blank before it; empty if it is unknown.

    Examples:
        >>> words(Source("train.py", 12, "step"))
        ' at train.py:12'
    """
    if source is None:
        return ""
    path = Path(source.file)
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f" at {short}:{source.line}"


def _source_of(frame: Any) -> Source | None:
    """Return a frame's place in the user's code, ``None`` if it is not the user's."""
    file, line, function = frame.filename, frame.lineno, frame.name
    if autographed.GENERATED in file:
        file, line, function = autographed.origin_of(file, line) or (file, line, function)
    return source_at(file, line, function) if USER_FILES.owns(file) else None


def _within(
    source: Source, exact: bool, op_type: str, trace: Any, position: int
) -> tuple[Source, bool]:
    """Find the line within a statement of which AutoGraph kept only the first."""
    if not autographed.was_converted(source.file, source.line):
        return source, exact
    makers = []
    for at in range(position + 1, min(position + 1 + _MAKERS, len(trace))):
        name = trace[at].name
        if name == _LAST_MAKER:
            break
        if name not in _NO_MAKERS:
            makers.append(name)
    found = line_within(source.file, source.line, op_type, tuple(makers))
    if found.line == source.line:
        return source, exact and found.exact
    return source_at(source.file, found.line, source.function), exact and found.exact


def phase_of_frame(file: str, function: str) -> Phase | None:
    """Return the phase that a frame by itself tells, ``None`` if it tells none.

    Args:
        file: of its code.
        function: name of its code.
    """
    part = _part_of(file)
    if part is _Part.OPTIMIZER:
        return Phase.OPTIMIZER if function in _OPTIMIZER_CALLS else None
    return _PHASES.get(part)


_parts: dict[str, _Part] = {}


def _part_of(file: str) -> _Part:
    if USER_FILES.owns(file):
        return _Part.USER
    if autographed.GENERATED in file:
        return _Part.GENERATED
    for ending, part in _ENDINGS.items():
        if file.endswith(ending):
            return part
    if "src/metrics/" in file:
        return _Part.METRICS
    return _Part.OPTIMIZER if "optimizer" in _within_library(file) else _Part.NOTHING


def _within_library(file: str) -> str:
    return file.rpartition("site-packages")[2]
