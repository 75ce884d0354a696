"""Samples of Python stacks, gathered from whatever a profiler wrote, as rows of ``samples``.

A frame called ``tl_step_12`` is a mark: the training step was run through a function of that name,
so the step is known without comparing clocks. It is shown as ``step``, else no two steps would
share a stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tracelens.convert._columns import MISSING, Rows

if TYPE_CHECKING:
    from tracelens.storage.bulk import BulkShard

_MARK = re.compile(r"^(?P<before>(?:.*\.)?)tl_step_(?P<step>\d{1,18})$")
MARK_SHOWN = "step"
_MOST = 1 << 62
MAX_FRAMES, _MAX_FRAME_CHARS = 1_000, 1_000
"""A deeper stack loses its outermost frames, a longer frame its end: recursion that ran away."""
MAX_STACK_CHARS = 128 << 20
"""Of all distinct stacks: a small file can name a long frame, or a deep stack, time and again."""


def frame_text(function: str, file: str = "", line: int | None = None) -> str:
    """Return a frame as the table keeps it.

    Examples:
        >>> frame_text("step", "train.py", 12), frame_text("main")
        ('step (train.py:12)', 'main')
    """
    if not file:
        return function
    return f"{function} ({file}:{line})" if line is not None else f"{function} ({file})"


def bounded(value: float) -> int:
    """Return a number as whole nanoseconds or counts that the table can hold.

    Examples:
        >>> bounded(1.6), bounded(1e300) == 2**62, bounded(float("nan"))
        (2, True, 0)
    """
    if math.isnan(value):
        return 0
    return round(max(-_MOST, min(_MOST, value)))


def step_in(function: str) -> tuple[str, int | None]:
    """Return a function's name and the step that it marks.

    Examples:
        >>> step_in("tl_step_12"), step_in("Trainer.tl_step_3"), step_in("forward")
        (('step', 12), ('Trainer.step', 3), ('forward', None))
    """
    matched = _MARK.match(function)
    if matched is None:
        return function, None
    return matched["before"] + MARK_SHOWN, int(matched["step"])


class Samples:
    """Stacks of one process.

    Attributes:
        samples: how many were taken in.
        steps: step -> ``[start, end]``, ns, where times are known.
        left_out: samples that were too much to hold.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.steps: dict[int, list[int]] = {}
        self._timed = Rows(("step", "t_ns", "duration_ns", "count"), ("thread", "stack"))
        self._summed: dict[tuple[str, str, int], list[int]] = {}
        self._marked = 0
        self.left_out = 0
        self._stacks: dict[str, str] = {}
        self._chars = 0

    def add(
        self,
        thread: str,
        frames: Sequence[str],
        step: int | None,
        *,
        duration_ns: int,
        count: int = 1,
        t_ns: int | None = None,
    ) -> None:
        """Take in a sample; those without a time are summed by thread, stack and step.

        Args:
            thread: the thread's name.
            frames: outermost first, as ``frame_text`` gives them.
            step: the training step, if known.
            duration_ns: how long it stands for.
            count: how many samples it is.
            t_ns: when it was taken, if known.
        """
        if not frames or count <= 0:
            return
        duration_ns, count = bounded(duration_ns), bounded(count)
        stack = self._stack(frames)
        if stack is None:
            self.left_out = bounded(self.left_out + count)
            return
        self.samples += count
        self._marked += count if step is not None else 0
        number = MISSING if step is None else step
        if t_ns is None:
            sums = self._summed.setdefault((thread, stack, number), [0, 0])
            sums[0] = bounded(sums[0] + duration_ns)
            sums[1] = bounded(sums[1] + count)
            return
        self._timed.add(step, t_ns, duration_ns, count, thread, stack)
        if step is not None:
            window = self.steps.setdefault(step, [t_ns, t_ns])
            window[0] = min(window[0], t_ns)
            window[1] = max(window[1], t_ns + duration_ns)

    def problems(self) -> list[str]:
        """Return what is to be told of samples that were left out."""
        if not self.left_out:
            return []
        most = f"{MAX_STACK_CHARS >> 20} MiB"
        return [
            f"{self.left_out} samples are left out: distinct stacks are more than {most} of text"
        ]

    def _stack(self, frames: Sequence[str]) -> str | None:
        """Return a stack's text, ``None`` if there are too many already."""
        deep = len(frames) > MAX_FRAMES
        kept = ["(outer frames left out)", *frames[-MAX_FRAMES:]] if deep else frames
        stack = "\n".join([frame[:_MAX_FRAME_CHARS] for frame in kept])
        known = self._stacks.get(stack)
        if known is None and self._chars + len(stack) <= MAX_STACK_CHARS:
            self._chars += len(stack)
            known = self._stacks[stack] = stack
        return known

    def write(self, shard: BulkShard) -> int:
        """Write the rows, and the steps whose times are known; return how many steps there are."""
        for (thread, stack, step), (duration_ns, count) in self._summed.items():
            known = None if step == MISSING else step
            self._timed.add(known, None, duration_ns, count, thread, stack)
        if len(self._timed):
            shard.write("samples", self._timed.columns())
        for step in sorted(self.steps):
            begin, end = self.steps[step]
            shard.event("step", step=step, start_ns=begin, duration_ns=end - begin)
        steps = self._timed.number("step")
        return len(np.unique(steps[steps != MISSING]))
