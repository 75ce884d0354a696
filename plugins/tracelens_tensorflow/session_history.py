"""What a session did since its variables were last kept, so that a bad run can be run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracelens_tensorflow.session_plan import Plan

Arrays = dict[str, Any]

MAX_RUNS = 100
"""Runs after which the variables are kept anew."""
MAX_BYTES = 64 << 20
"""Feeds and batches that are kept for running again."""
_SHARE = 0.02
"""Of a run's time that keeping the variables may cost on average."""
_COPIED_BYTES = 16 << 20


@dataclass(slots=True)
class Run:
    """One run as it can be repeated: its plan, and what it was given, by tensor name.

    Attributes:
        plan: what ran.
        given: feeds, and what its sources handed over.
        step: the recording's step.
        number: how manieth run it is.
        remarks: why repeating it may not give the same.
    """

    plan: Plan
    given: Arrays
    step: int = 0
    number: int = 0
    remarks: list[str] = field(default_factory=list)


class History:
    """The kept variables of one session, and the runs since.

    Args:
        read: fetches variables' values from the session: ``read(variables) -> arrays``.
    """

    def __init__(self, read: Callable[[Sequence[Any]], list[Any]]) -> None:
        self._read = read
        self._kept: dict[Any, Any] = {}
        self._variables: dict[Any, None] = {}
        self.runs: list[Run] = []
        self._bytes = 0
        self._cost_s = 0.0
        self._run_s = 0.0
        self._began_s = 0.0

    @property
    def variables(self) -> dict[Any, Any]:
        """The kept values by variable op."""
        return self._kept

    def is_due(self, plan: Plan) -> bool:
        """Tell whether the variables are to be kept before the next run of a plan."""
        if len(self.runs) >= self._interval() or self._bytes > MAX_BYTES:
            return True
        return any(variable not in self._kept for variable in plan.variables)

    def keep(self, plan: Plan) -> None:
        """Keep the variables as they are now.

        Raises:
            Exception: they cannot be read (uninitialised ones, for example).
        """
        self._variables.update(dict.fromkeys(plan.variables))
        self.drop()
        began = time.perf_counter()
        self._kept = self.now()
        self._cost_s = time.perf_counter() - began

    def now(self) -> dict[Any, Any]:
        """Return the variables' present values, by variable op.

        Raises:
            Exception: they cannot be read (uninitialised ones, for example).
        """
        wanted = list(self._variables)
        return dict(zip(wanted, self._read(wanted), strict=True))

    def begin(self) -> None:
        """A run begins."""
        self._began_s = time.perf_counter()

    def after(self, run: Run) -> None:
        """Add a run that wrote variables."""
        self._run_s = time.perf_counter() - self._began_s
        if self._kept:
            self.runs.append(run)
            self._bytes += sum(_size(array) for array in run.given.values())

    def drop(self) -> None:
        """Forget everything: what happens next to the variables cannot be repeated."""
        self._kept = {}
        self.runs = []
        self._bytes = 0

    def _interval(self) -> int:
        if not self._run_s:
            return 1
        return int(min(MAX_RUNS, max(1, self._cost_s / (_SHARE * self._run_s))))


def kept_feeds(feeds: Arrays) -> tuple[Arrays, list[str]]:
    """Return copies of feeds (large ones by reference), and remarks on what is not certain."""
    kept: Arrays = {}
    remarks = []
    room = _COPIED_BYTES
    for name, array in feeds.items():
        size = _size(array)
        if size <= room and isinstance(array, np.ndarray):
            room -= size
            kept[name] = array.copy()
        else:
            kept[name] = array
            if isinstance(array, np.ndarray):
                remarks.append(f"the feed of {name} was kept without a copy")
    return kept, remarks


def _size(array: Any) -> int:
    return int(getattr(array, "nbytes", 0))
