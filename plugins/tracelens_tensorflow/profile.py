"""``profile=True``: when every op ran and how long, from TensorFlow's own profiler.

The profiler runs while the steps that the schedule asks for do, in stretches, each of which is
read and written as it ends. An op's record then holds its time and thread, and no tensors: it
stands beside what the capture level records.
"""

from __future__ import annotations

import bisect
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.profiler import profiler_v2

from tracelens.convert import xplane
from tracelens.convert.protowire import WireError
from tracelens.events import NO_ID, OpFlag, Phase, RecordKind

if TYPE_CHECKING:
    from tracelens.session import Session

STRETCH_STEPS = 64
STRETCH_S = 30.0
"""A stretch of profiling ends with the step that reaches one of these: a profile is held in
memory until it does."""

_OPTIONS = {"host_tracer_level": 2, "python_tracer_level": 0, "device_tracer_level": 1}
_BACKWARD = re.compile(r"(?:^|/)(?:gradient_tape|gradients(?:_\d+)?)/")
_UPDATES = re.compile(r"^(Resource(Sparse)?Apply|Assign(Add|Sub)?VariableOp$)")
_NO_TENSORS = (NO_ID,) * 4
_NO_NUMBERS = (0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, -1)

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
        self._began_s = 0.0
        self._kernels = 0
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Make way for a profiler that the program starts itself."""
        watch = self
        start, stop = profiler_v2.start, profiler_v2.stop

        def theirs(*args: Any, **kwargs: Any) -> Any:
            watch._end_stretch()
            watch._theirs = True
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
        long = len(self._steps) >= STRETCH_STEPS or time.monotonic() - self._began_s > STRETCH_S
        if self._running and (long or not active):
            self._end_stretch()
        if active and not self._running:
            self._begin_stretch()
        self._steps.append((time.time_ns(), step))

    def _begin_stretch(self) -> None:
        if self._failed or self._theirs:
            return
        self._directory = tempfile.mkdtemp(prefix="tracelens-profile-")
        self._steps = []
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
                self._write(xplane.read(path.read_bytes()))
        except (OSError, WireError, tf.errors.OpError) as error:
            self._fail("TensorFlow's profile could not be read", error)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, profile: xplane.Profile) -> None:
        writer = self._session.writer
        epoch_ns = writer.manifest.epoch_unix_ns
        begins = [at for at, _ in self._steps]
        sites: dict[tuple[str, str], int] = {}
        for op in sorted(profile.ops, key=lambda each: each.start_unix_ns):
            place = max(0, bisect.bisect_right(begins, op.start_unix_ns) - 1)
            step = self._steps[place][1] if self._steps else self._session.current_step
            site = sites.get((op.name, op.op_type))
            if site is None:
                value = {"op": op.op_type, "module": op.name}
                site = sites[op.name, op.op_type] = writer.intern("site", value)
            writer.write(
                writer.reserve(), RecordKind.OP, _phase(op), int(OpFlag.PROFILED), op.thread,
                site, 0, writer.reserve_op_id(), step, NO_ID, NO_ID,
                op.start_unix_ns - epoch_ns, op.duration_ns, *_NO_TENSORS, 0, 0, 0, 0,
                *_NO_NUMBERS, NO_ID,
            )  # fmt: skip
        for line in profile.warnings[:1]:
            self._session.note("profile", f"the profiler says: {line}", "warning")
        if profile.device_events and not self._kernels:
            told = "kernels of devices were profiled but are not kept by this version"
            self._session.note("profile", told, "warning")
        self._kernels += profile.device_events

    def _fail(self, what: str, error: Exception) -> None:
        self._failed = True
        shutil.rmtree(self._directory, ignore_errors=True)
        self._session.note("hook_failed", f"{what}: {error}".splitlines()[0][:300], "warning")


def _phase(op: xplane.ProfiledOp) -> Phase:
    if _UPDATES.match(op.op_type):
        return Phase.OPTIMIZER
    return Phase.BACKWARD if _BACKWARD.search(op.name) else Phase.OTHER


def _replaced(place: Any, name: str, made: Any) -> Callable[[], None]:
    original = getattr(place, name)
    setattr(place, name, made)

    def undo() -> None:
        setattr(place, name, original)

    return undo
