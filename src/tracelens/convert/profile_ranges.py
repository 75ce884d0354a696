"""What a profile tells, before it is linked: ranges of threads, facts of ops, what numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tracelens.convert.profile_names import Frame, Names, frame_of, stack_frame
from tracelens.convert.profile_nesting import Ints

Codes = NDArray[np.int32]
RANGE_KINDS = (
    "python", "annotation", "op", "runtime", "overhead", "other", "sync", "device_annotation",
    "device_other",
)  # fmt: skip
"""Kinds of ranges; of two at the same time on a thread the one that stands first is outside."""

PYTHON, ANNOTATION, OP, RUNTIME, OVERHEAD, OTHER, SYNC, DEVICE_ANNOTATION, DEVICE_OTHER = range(9)


@dataclass(slots=True)
class HostRanges:
    """What ran on the host, and named ranges of devices; every array but ``corr`` has shape (n,).

    Times are ns since the trace's epoch. -1 stands for what is not known.

    Attributes:
        kind: position in ``RANGE_KINDS``.
        name: number into the names.
        thread: number of the thread; a device's streams have numbers of their own.
        start_ns: when it began.
        end_ns: when it ended.
        fact: what else is known: of ``op`` the row in ``OpFacts``, of ``runtime`` the row in
            ``corr``, of others the number of the text of their arguments.
        corr: correlation ids of calls of the runtime, 0 for none, shape (calls,).
    """

    kind: NDArray[np.uint8]
    name: Codes
    thread: Codes
    start_ns: Ints
    end_ns: Ints
    fact: Codes
    corr: Ints


@dataclass(slots=True)
class OpFacts:
    """What is known of ops beyond their time; every array has shape (ops,).

    Attributes:
        external: id that device work names its op by, 0 for none.
        sequence: number shared by a forward op and its backward op, -1 for none.
        forward_thread: above 0 for a backward op.
        shapes: number into the texts, as are ``types`` and ``values``; -1 for none.
        types: element types of the inputs.
        values: scalar inputs.
        frame: number into the frames, by the op's own call stack; -1 for none.
        module: number into the module paths, by the op's own hierarchy; -1 for none.
    """

    external: Ints
    sequence: Ints
    forward_thread: Codes
    shapes: Codes
    types: Codes
    values: Codes
    frame: Codes
    module: Codes


@dataclass(slots=True)
class Steps:
    """Training steps in order of time; every array has shape (steps,).

    Attributes:
        number: of each.
        start_ns: since the trace's epoch.
        end_ns: since the trace's epoch.
    """

    number: Ints
    start_ns: Ints
    end_ns: Ints

    def of(self, times_ns: Ints) -> Ints:
        """Return the step in whose window each time lies, -1 outside of all."""
        if not len(self.number):
            return np.full(len(times_ns), -1, dtype=np.int64)
        at = np.searchsorted(self.start_ns, times_ns, side="right") - 1
        inside = (at >= 0) & (times_ns < self.end_ns[at])
        return np.where(inside, self.number[at], -1)


@dataclass(slots=True)
class Texts:
    """Numbered texts that ranges refer to.

    Attributes:
        names: facts about the names of ranges.
        frames: Python frames.
        frame_of_name: number of the frame that a name tells, -1 for none, shape (names,).
        users: which frames are the user's, shape (frames,).
        exact: which frames have the line that ran, not that of their function, shape (frames,).
        modules: module paths; those of nested modules are added.
    """

    names: Names
    frames: list[Frame] = field(default_factory=list)
    frame_of_name: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    users: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    exact: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    modules: list[str] = field(default_factory=list)


def frames_of(names: Sequence[str], stacks: Sequence[str] = ()) -> tuple[list[Frame], Codes, Codes]:
    """Return the frames that names and call stacks tell.

    Returns:
        The frames, the number of each name's, and of each stack's innermost user's frame; -1 none.
    """
    frames: dict[Frame, int] = {}

    def number(frame: Frame | None) -> int:
        return -1 if frame is None else frames.setdefault(frame, len(frames))

    of_names = [number(frame_of(name)) for name in names]
    of_stacks = [number(stack_frame(stack)) for stack in stacks]
    return (
        list(frames),
        np.array(of_names, dtype=np.int32),
        np.array(of_stacks, dtype=np.int32),
    )
