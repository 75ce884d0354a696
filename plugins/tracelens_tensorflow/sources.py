"""Reads an op's traceback: the user's line that made it, and the phase its frames tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorflow.python.util import tf_stack

from tracelens.events import Phase, Source
from tracelens.userframes import UserFiles, directory_of, source_at

USER_FILES = UserFiles(
    libraries=("tensorflow", "keras", "tf_keras", "tensorboard", "tensorflow_estimator"),
    directories=(directory_of("tensorflow"), Path(__file__).parent),
    parts=("__autograph_generated_file",),
)
"""The test for the user's own files in a process that uses TensorFlow."""

_BACKWARD = (
    "python/eager/backprop.py",
    "python/ops/gradients_util.py",
    "python/ops/gradients_impl.py",
)
_OPTIMIZER_CALLS = frozenset(("apply", "apply_gradients", "_distributed_apply", "update_step"))
_DATA = ("python/data/ops/structured_function.py",)
_DATA_LOOP = "python/data/ops/dataset_autograph.py"
_METRICS = ("src/metrics/", "src/trainers/compile_utils.py", "python/keras/metrics.py")
_LOADED = ("saved_model/function_deserialization.py", "framework/importer.py")


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
        file, function = frame.filename, frame.name
        if USER_FILES.owns(file):
            if source is None:
                source = source_at(file, frame.lineno, function)
                own = phase is None
            continue
        if source is None and file.endswith(_LOADED):
            exact = False
        # The body of a loop over a dataset is a function of tf.data too, but no part of a pipeline.
        in_loop = in_loop or file.endswith(_DATA_LOOP)
        if phase is None:
            phase = _phase_of(file, function)
            if phase is Phase.DATA and in_loop:
                phase = None
        if source is not None and phase is not None:
            break
    return Place(source, exact, phase, own)


def calling_line() -> Source | None:
    """Return the user's innermost line that the calling thread is at, through AutoGraph.

    The frames are those that TensorFlow itself would give an op made here.
    """
    trace = tf_stack.extract_stack()
    for position in range(len(trace) - 1, -1, -1):
        frame = trace[position]
        if USER_FILES.owns(frame.filename):
            return source_at(frame.filename, frame.lineno, frame.name)
    return None


def _phase_of(file: str, function: str) -> Phase | None:
    if file.endswith(_BACKWARD):
        return Phase.BACKWARD
    if function in _OPTIMIZER_CALLS and "optimizer" in file:
        return Phase.OPTIMIZER
    if file.endswith(_DATA):
        return Phase.DATA
    if any(part in file for part in _METRICS):
        return Phase.OTHER
    return None
