"""``profile=True``: when every op ran and how long, from TensorFlow's own profiler.

The profiler runs while the steps that the schedule asks for do, in stretches, each of which is
read and handed to the sealer as it ends: ops, spans of the host (tf.data, calls of the device's
runtime), kernels and copies of devices tied to their ops, allocations. An op's row then holds its
time and thread, and no tensors: it stands beside what the capture level records.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.profiler import profiler_v2

from tracelens.clocks import unix_offset_ns
from tracelens.convert.protowire import WireError
from tracelens.convert.xplane_host import HostRows
from tracelens.convert.xplane_wire import space
from tracelens.storage.columns import Masked

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens.storage.writer import ShardWriter

STRETCH_STEPS = 64
STRETCH_S = 30.0
"""A stretch of profiling ends with the step that reaches one of these: a profile is held in
memory until it does."""

_IDS = (("op_id", "ops"), ("span_id", "spans"), ("kern_id", "kernels"))
"""Columns of ids, and whose rows they number."""

_OPTIONS = {"host_tracer_level": 2, "python_tracer_level": 0, "device_tracer_level": 1}

_active: ProfileWatch | None = None


def install(session: Session) -> Callable[[], None]:
    """Begin to profile, from the next step on.

    Args:
        session: the recording.

    Returns:
        A function that ends it and writes what is left.
    """
    global _active
    watch = ProfileWatch(session)
    watch.install()
    _active = watch

    def uninstall() -> None:
        global _active
        _active = None
        watch.remove()

    return uninstall


def begin_step(step: int, *, active: bool) -> None:
    """A step begins."""
    if _active is not None:
        _active.begin_step(step, active=active)


def after_step(step: int) -> None:
    """A step has ended and its time is taken."""
    if _active is not None:
        _active.after_step(step)


class ProfileWatch:
    """The profiler of one recording.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._directory = ""
        self._running = False
        self._theirs = False
        self._failed = False
        self._steps: list[tuple[int, int]] = []
        self._ends: list[int] = []
        self._whole = False
        self._began_s = 0.0
        self._offset_ns = 0
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Make way for a profiler that the program starts itself."""
        watch = self
        start, stop = profiler_v2.start, profiler_v2.stop

        def theirs(*args: Any, **kwargs: Any) -> Any:
            watch._end_stretch()
            watch._theirs, watch._whole = True, False
            return start(*args, **kwargs)

        def no_longer(*args: Any, **kwargs: Any) -> Any:
            watch._theirs = False
            return stop(*args, **kwargs)

        self._start, self._stop = start, stop
        for place in (profiler_v2, tf.profiler.experimental):
            for name, made in (("start", theirs), ("stop", no_longer)):
                self._undo.append(_replaced(place, name, made))

    def remove(self) -> None:
        """End it, and write what is left."""
        self._end_stretch()
        while self._undo:
            self._undo.pop()()

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins: one that is not active is not profiled."""
        if self._running and not active:
            self._end_stretch()
        if active and not self._running:
            self._begin_stretch()
        self._whole = self._running
        now_ns = self._session.writer.now_ns()
        if len(self._ends) < len(self._steps):  # it was given another number
            self._ends.append(now_ns)
        self._steps.append((now_ns, step))

    def after_step(self, step: int) -> None:
        """A step has ended and its time is taken: what takes long can be done now."""
        if len(self._ends) < len(self._steps):
            self._ends.append(self._session.writer.now_ns())
        if not self._whole:
            self._session.clock.was_not_profiled()
        long = len(self._steps) >= STRETCH_STEPS or time.monotonic() - self._began_s > STRETCH_S
        if self._running and (long or not self._session.config.is_active(step + 1)):
            self._end_stretch()

    def _begin_stretch(self) -> None:
        if self._failed or self._theirs:
            return
        self._directory = tempfile.mkdtemp(prefix="tracelens-profile-")
        self._steps, self._ends = [], []
        self._offset_ns = unix_offset_ns()
        try:
            options = tf.profiler.experimental.ProfilerOptions(**_OPTIONS)
            self._start(self._directory, options=options)
        except Exception as error:
            self._fail("TensorFlow's profiler could not be started", error)
            return
        self._running, self._began_s = True, time.monotonic()

    def _end_stretch(self) -> None:
        if not self._running:
            return
        self._running = False
        try:
            self._stop()
            for path in sorted(Path(self._directory).rglob("*.xplane.pb")):
                self._write(path.read_bytes())
        except (OSError, WireError, tf.errors.OpError) as error:
            self._fail("TensorFlow's profile could not be read", error)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, data: bytes) -> None:
        found = space(data)
        writer = self._session.writer
        # Times are Unix times: the trace's clock is monotonic, and the two drift apart.
        epoch_ns = writer.epoch_monotonic_ns + (self._offset_ns + unix_offset_ns()) // 2
        problems: list[str] = []
        rows = _StepsGiven(found, epoch_ns, problems)
        rows.take_steps(self._marks())
        tables = _Tables(writer)
        rows.write(tables)  # type: ignore[arg-type]
        if tables.columns and not writer.spool(tables.columns):
            self._session.note("profile", "a profile is lost: no room on the disk", "warning")
        for line in [*found.warnings, *problems][:1]:
            self._session.note("profile", f"the profiler says: {line}", "warning")

    def _marks(self) -> list[dict[str, int]]:
        now_ns = self._session.writer.now_ns()
        ends = [*self._ends, *[now_ns] * (len(self._steps) - len(self._ends))]
        return [
            {"step": step, "start_ns": start_ns, "duration_ns": end_ns - start_ns}
            for (start_ns, step), end_ns in zip(self._steps, ends, strict=True)
        ]

    def _fail(self, what: str, error: Exception) -> None:
        self._failed = True
        shutil.rmtree(self._directory, ignore_errors=True)
        self._session.note("hook_failed", f"{what}: {error}".splitlines()[0][:300], "warning")


class _StepsGiven(HostRows):
    """Rows of a profile whose steps are those of the recording."""

    def take_steps(self, steps: list[dict[str, int]]) -> None:
        """Take the recording's steps: a profile's own are marks of other tools."""
        for place, step in enumerate(steps):
            self._steps[place] = step

    def _step(self, number: int, start: int, end: int) -> None:
        return


class _Tables:
    """Takes what `BulkShard` takes, with ids that the recording gives out.

    Args:
        writer: of the recording.

    Attributes:
        columns: table name to columns.
    """

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer
        self._ids: dict[str, NDArray[np.int64]] = {}
        self.columns: dict[str, dict[str, Any]] = {}

    def write(self, name: str, columns: dict[str, Any]) -> None:
        """Take a table."""
        columns = dict(columns)
        for column, table in _IDS:
            if column in columns:
                if table == name:
                    self._ids[table] = self._reserve(table, len(columns[column]))
                columns[column] = self._given(columns[column], table)
        if name in ("ops", "spans"):
            columns["parent_id"] = self._given(columns["parent_id"], name)
        self.columns[name] = columns

    def event(self, kind: str, **fields: Any) -> None:
        """The recording writes its own steps."""

    def _given(self, rows: Any, table: str) -> Any:
        """Return the ids that the recording gave to rows of a table."""
        ids = self._ids.get(table, np.zeros(1, dtype=np.int64))
        if isinstance(rows, Masked):
            return Masked(ids[np.where(rows.null, 0, rows.values)], rows.null)
        return ids[rows]

    def _reserve(self, table: str, n: int) -> NDArray[np.int64]:
        if table != "ops":
            return self._writer.reserve_rows(table, n) + np.arange(n)
        # One by one: other threads are given ids meanwhile.
        return np.array([self._writer.reserve_op_id() for _ in range(n)], dtype=np.int64)


def _replaced(place: Any, name: str, made: Any) -> Callable[[], None]:
    original = getattr(place, name)
    setattr(place, name, made)

    def undo() -> None:
        setattr(place, name, original)

    return undo
