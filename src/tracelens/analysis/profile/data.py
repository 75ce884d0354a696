"""One rank's profile: what analyses are functions of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis.profile.columns import LIMITS, Columns, Steps, durations, rows_of
from tracelens.analysis.profile.intervals import Intervals, Ints, union

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

DEVICE_KINDS = ("kernel", "comm", "memcpy", "memset")
"""Kinds of device work; a kind that is none of these counts as ``kernel``."""


@dataclass(frozen=True)
class StepTable:
    """The training steps of a rank, in order of time.

    Attributes:
        step: numbers, shape (n,). One step numbered -1 stands for the whole trace where no step
            was marked.
        start_ns: shape (n,).
        end_ns: shape (n,).
        marked: whether the program marked them.
    """

    step: Ints
    start_ns: Ints
    end_ns: Ints
    marked: bool

    def __len__(self) -> int:
        return len(self.step)

    @property
    def duration_ns(self) -> Ints:
        """Lengths, shape (n,)."""
        return self.end_ns - self.start_ns


class ProfileData:
    """What analyses are functions of: one rank of a trace, or some of its steps.

    Attributes:
        reader: the trace, open.
        rank: whose profile.
        clock_offset_ns: what to add to its times to align them with rank 0.
        selected: the steps asked for, ``None`` for all.
        kernels: device work launched in the selected steps.
        device: all device work of the rank: what ran in a step's window may come from another.
        ops: framework ops of the selected steps.
        spans: everything else of the host in these steps.
        memory: allocations and frees of the whole rank: what is held depends on what went before.
        samples: stack samples of the selected steps.
        counters: all counters.
    """

    def __init__(self, reader: TraceReader, rank: int = 0, steps: Steps | None = None) -> None:
        self.reader = reader
        self.rank = rank
        self.clock_offset_ns = reader.clock_offset_ns(rank)
        self.selected = steps if steps not in (None, (None, None)) else None
        self.device = Columns(reader, "kernels", rank)
        self.kernels = (
            Columns(reader, "kernels", rank, self.selected) if self.selected else self.device
        )
        self.ops = Columns(reader, "ops", rank, self.selected)
        self.spans = Columns(reader, "spans", rank, self.selected)
        self.memory = Columns(reader, "memory", rank)
        self.samples = Columns(reader, "samples", rank, self.selected)
        self.counters = Columns(reader, "counters", rank)

    def table(self, name: str) -> Columns:
        """Return another table of the selected steps."""
        return Columns(self.reader, name, self.rank, self.selected)

    @cached_property
    def steps(self) -> StepTable:
        """The selected steps that were profiled, or one that spans everything if none was marked.

        A schedule leaves steps out: nothing of them was recorded, which is not idle time.
        """
        first, end = self.selected or (None, None)
        last = None if end is None else end - 1
        # The rank's other attempts have steps as well, at other times.
        own = set(self.table("steps").ints("start_ns").tolist())
        rows = [
            _window(event["start_ns"], event["duration_ns"], event["step"])
            for event in self.reader.steps(first, last, rank=self.rank)
            if isinstance(event.get("start_ns"), int)
            and isinstance(event.get("duration_ns"), int)
            and isinstance(event.get("step"), int)
            and event["start_ns"] in own
            and event.get("profiled") is not False
        ]
        if rows:
            start, stop, step = np.array(sorted(rows), dtype=np.int64).T
            return StepTable(step, start, stop, True)
        low, high = self.window
        return StepTable(np.array([-1]), np.array([low]), np.array([high]), False)

    @cached_property
    def window(self) -> tuple[int, int]:
        """First start and last end of everything recorded, ns; (0, 0) if there is nothing."""
        bounds = []
        for columns in (self.kernels, self.ops, self.spans):
            if len(columns):
                starts = columns.ints("start_ns")
                bounds.append((int(starts.min()), int((starts + durations(columns)).max())))
        return (min(b[0] for b in bounds), max(b[1] for b in bounds)) if bounds else (0, 0)

    @cached_property
    def op_phase(self) -> tuple[Ints, list[str]]:
        """Codes and texts of the phase of each row of ``ops``."""
        return self.ops.codes("phase"), self.ops.texts("phase")

    @cached_property
    def op_parent(self) -> Ints:
        """Row of each op's enclosing op, -1 for none; shape (ops,)."""
        parent = self.ops.ints("parent_id")
        return rows_of(self.ops.ints("op_id"), parent)

    @cached_property
    def kernel_op(self) -> Ints:
        """Row in ``ops`` of the op that launched each row of ``kernels``, -1 for none."""
        return rows_of(self.ops.ints("op_id"), self.kernels.ints("op_id"))

    def device_class(self, columns: Columns | None = None) -> Ints:
        """Return each row's position in ``DEVICE_KINDS``; shape (rows,)."""
        rows = self.device if columns is None else columns
        of_text = [
            DEVICE_KINDS.index(text) if text in DEVICE_KINDS else 0 for text in rows.texts("kind")
        ]
        return np.array([*of_text, 0], dtype=np.int64)[rows.codes("kind")]

    def busy(self, *kinds: str) -> Intervals:
        """Return when any of these kinds of work ran on a device; all kinds if none is named."""
        columns = self.device
        starts = columns.ints("start_ns")
        ends = starts + durations(columns)
        if not kinds:
            return union(starts, ends)
        classes = self.device_class()
        mask = np.isin(classes, [DEVICE_KINDS.index(kind) for kind in kinds])
        return union(starts[mask], ends[mask])

    def span_intervals(self, mask: NDArray[np.bool_]) -> Intervals:
        """Return when any of some spans ran; ``mask`` is bool of shape (spans,)."""
        starts = self.spans.ints("start_ns")[mask]
        return union(starts, starts + durations(self.spans)[mask])


def _window(start_ns: int, duration_ns: int, step: int) -> tuple[int, int, int]:
    """Return a step's start, end and number, within what numbers can hold."""
    start = min(max(start_ns, -LIMITS["start_ns"]), LIMITS["start_ns"])
    length = min(max(duration_ns, 0), LIMITS["duration_ns"])
    return start, start + length, min(max(step, -(1 << 62)), 1 << 62)


def load_profile(
    reader: TraceReader, rank: int | None = None, steps: Steps | None = None
) -> ProfileData:
    """Return one rank's profile; nothing is read before an analysis asks.

    Args:
        reader: an open trace, which must stay open.
        rank: whose; the lowest in the trace if ``None``.
        steps: first step and the one after the last, ``None`` where open.
    """
    ranks = reader.ranks()
    lowest = ranks[0] if ranks else 0
    return ProfileData(reader, lowest if rank is None else rank, steps)
