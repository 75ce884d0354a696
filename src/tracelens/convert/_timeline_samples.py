"""Stack samples whose times are known as ranges that nest, as a flame chart shows them.

A frame is taken as open from the first sample that has it to the end of the last one that follows
without a gap and has the same frames above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

GAP = 1.5
"""Samples that are further apart than this many of their durations are not joined."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a thread.

    Attributes:
        t_ns: when it was taken.
        duration_ns: how long it stands for.
        frames: outermost first.
        step: the training step, if known.
    """

    t_ns: int
    duration_ns: int
    frames: tuple[str, ...]
    step: int | None


@dataclass(slots=True)
class Range:
    """How long a frame was open.

    Attributes:
        frame: the frame's text.
        start_ns: when it began.
        end_ns: when it ended.
        samples: how many samples have it.
        step: of its first sample.
    """

    frame: str
    start_ns: int
    end_ns: int
    samples: int
    step: int | None


def ranges(samples: Iterable[Sample]) -> list[Range]:
    """Return the ranges of a thread's samples, by start, the outer before the inner.

    Args:
        samples: in order of time.

    Examples:
        >>> taken = [Sample(0, 10, ("main", "f"), None), Sample(10, 10, ("main", "g"), None)]
        >>> [(each.frame, each.start_ns, each.end_ns) for each in ranges(taken)]
        [('main', 0, 20), ('f', 0, 10), ('g', 10, 20)]
    """
    found = list(_ranges(samples))
    # Ranges come as they end; those of one start and end come innermost first.
    found.reverse()
    found.sort(key=lambda each: (each.start_ns, -each.end_ns))
    return found


def _ranges(samples: Iterable[Sample]) -> Iterator[Range]:
    stack: list[Range] = []
    for sample in samples:
        # A sample stands until the next, which may come a little early.
        if stack and stack[0].end_ns > sample.t_ns:
            for each in stack:
                each.end_ns = max(each.start_ns, sample.t_ns)
        apart = stack and sample.t_ns - stack[0].end_ns > (GAP - 1) * sample.duration_ns
        kept = 0
        if not apart:
            for each, frame in zip(stack, sample.frames, strict=False):
                if each.frame != frame:
                    break
                kept += 1
        while len(stack) > kept:
            yield stack.pop()
        end_ns = sample.t_ns + sample.duration_ns
        for each in stack:
            each.end_ns = end_ns
            each.samples += 1
        for frame in sample.frames[kept:]:
            stack.append(Range(frame, sample.t_ns, end_ns, 1, sample.step))
    while stack:
        yield stack.pop()
