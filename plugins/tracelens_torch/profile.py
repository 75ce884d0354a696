"""``profile=True``: ops, kernels, copies and memory from Kineto, PyTorch's own profiler.

Kineto runs while the steps that the schedule asks for do, in stretches. A stretch ends between two
steps; its events are read in this process, tied to what the observer recorded, and handed to the
sealer as whole columns (``storage.spool``), so nothing here writes files of its own.

Only one profiler can run in a process: a program that starts `torch.profiler` itself goes first,
and a note says which steps are missing.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.autograd.profiler as torch_profiler
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import (
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    _ExperimentalConfig,
)

from tracelens import nativebuild
from tracelens_torch import native_profile
from tracelens_torch.memory_owners import Owners
from tracelens_torch.profile_stretch import Stretch

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.modules import ModuleNames

STRETCH_STEPS = 64
STRETCH_S = 10.0
"""A stretch ends with the step that reaches one of these: its events are held in memory."""

STRETCH_OPS = 16_384
"""It ends too once so many ops were recorded in it. Kineto has some four events for one of them, of
a kilobyte each; and their records are still in the ring then, where they are looked up."""

_ACTIVITIES = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}
_ERRORS_ONLY = 6
_PATCHED = ("_prepare_profiler", "_enable_profiler", "_disable_profiler")


class ProfileWatch:
    """Runs Kineto for one recording.

    Args:
        session: the recording.
        modules: names of modules and parameters.

    Attributes:
        owners: knows which memory belongs to what.
    """

    def __init__(self, session: Session, modules: ModuleNames) -> None:
        self._session = session
        self.owners = Owners(session, modules)
        self._devices = _devices()
        self._unnamed = list(self._devices)
        self._activities = {ProfilerActivity.CPU, *(_ACTIVITIES[each] for each in self._devices)}
        self._stretch: Stretch | None = None
        self._prepared = False
        self._theirs = False
        self._failed = False
        self._whole = False
        self._thread = 0
        self._told: set[str] = set()
        self._undo: list[Callable[[], None]] = []

    def install(self) -> Callable[[], None]:
        """Make way for a profiler that the program starts; return a function that ends it all."""
        self._build_reader()
        originals = {name: getattr(torch_profiler, name) for name in _PATCHED}

        def prepare(*args: Any, **kwargs: Any) -> Any:
            self._step_aside()
            return originals["_prepare_profiler"](*args, **kwargs)

        def enable(*args: Any, **kwargs: Any) -> Any:
            self._step_aside()
            return originals["_enable_profiler"](*args, **kwargs)

        def disable(*args: Any, **kwargs: Any) -> Any:
            self._theirs = False
            return originals["_disable_profiler"](*args, **kwargs)

        for name, made in zip(_PATCHED, (prepare, enable, disable), strict=True):
            setattr(torch_profiler, name, made)

        def remove() -> None:
            self.end()
            for name, original in originals.items():
                setattr(torch_profiler, name, original)

        return remove

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins: one that is not active is not profiled."""
        if self._stretch is not None and not active:
            self.end()
        if active and self._stretch is None:
            self._begin()
        self._whole = self._stretch is not None
        if self._stretch is not None:
            self._stretch.begin_step(step)

    def after_step(self, step: int) -> None:
        """A step has ended and its time is taken: what takes long can be done now."""
        stretch = self._stretch
        config = self._session.config
        if not self._whole:
            self._session.clock.was_not_profiled()
        if stretch is not None:
            stretch.end_step()
        else:
            if config.is_active(step + 1) and not config.is_active(step):
                self._prepare()
            return
        if (
            not config.is_active(step + 1)
            or stretch.steps >= STRETCH_STEPS
            or stretch.age_s >= STRETCH_S
            or stretch.ops >= STRETCH_OPS
        ):
            self.end()

    def end(self) -> None:
        """End the stretch that runs, if one does, and hand its events over."""
        stretch = self._stretch
        if stretch is None:
            return
        if threading.get_ident() != self._thread:
            # Kineto's state belongs to the thread that began it: only that one can end it.
            self._note("steps change threads: a profile is kept until its own thread ends a step")
            return
        self._stretch = None
        try:
            for device in self._devices:
                # What still runs would be missing: torch.profiler waits for it too.
                getattr(torch, device).synchronize()
            self._name_devices()
            with _quiet():
                result = _disable_profiler()
            torch_profiler._run_on_profiler_stop()
            stretch.finish(result)
        except Exception as error:
            self._fail("PyTorch's profile could not be read", error)

    def abandon(self) -> None:
        """In a forked child: forget the stretch."""
        if self._stretch is not None:
            # Kineto would go on collecting what nobody will ever ask this process for.
            torch.autograd._enable_record_function(False)
        self._stretch = None

    def _build_reader(self) -> None:
        """Compile the reader of results now: at the end of a stretch the program would wait."""
        config = self._session.config
        if not native_profile.built() and nativebuild.compiler() and not config.quiet:
            sys.stderr.write("tracelens: compiling the profile reader, once (about 10 s)\n")
        native_profile.load()

    def _prepare(self) -> None:
        if not (self._failed or self._theirs or self._prepared):
            try:
                # It sets Kineto's log level up at its first use, and prints nothing.
                _prepare_profiler(_config(self._activities), self._activities)
                self._prepared = True
            except Exception as error:
                self._fail("PyTorch's profiler could not be started", error)

    def _begin(self) -> None:
        if torch._C._autograd._profiler_enabled():
            self._note("the program profiles itself: its steps are not profiled a second time")
            return
        self._prepare()
        if not self._prepared or self._failed or self._theirs:
            return
        self._prepared = False
        self._thread = threading.get_ident()
        try:
            torch_profiler._run_on_profiler_start()
            with _quiet():
                _enable_profiler(_config(self._activities), self._activities)
        except Exception as error:
            self._fail("PyTorch's profiler could not be started", error)
            return
        self.owners.begin()
        self._stretch = Stretch(self._session, self.owners)

    def _step_aside(self) -> None:
        if self._theirs:
            return
        self._theirs = True
        self._prepared = False
        if self._stretch is not None:
            self._note("the program starts torch.profiler: TraceLens does not profile meanwhile")
        self._whole = False
        self.end()

    def _name_devices(self) -> None:
        """Tell which devices these are, once: their limits are known by name."""
        unnamed, self._unnamed = self._unnamed, []
        for kind in unnamed:
            module = getattr(torch, kind)
            names = (module.get_device_name(index) for index in range(module.device_count()))
            for name in dict.fromkeys(names):
                message, step = f"device: {name}", self._session.current_step
                self._session.event(
                    "note", kind="device", name=name, severity="info", message=message, step=step
                )

    def _note(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._session.note("profile", message, "warning")

    def _fail(self, what: str, error: Exception) -> None:
        self._failed = True
        told = f"{what}: {type(error).__name__}: {error}".splitlines()[0][:300]
        self._session.note("hook_failed", told, "warning")


@contextmanager
def _quiet() -> Iterator[None]:
    """Kineto prints when it starts and stops, whatever its log level: stderr is the program's."""
    level = _severity()
    before = None if level is None else level.value
    if level is not None:
        level.value = max(before or 0, _ERRORS_ONLY)
    try:
        yield
    finally:
        if level is not None:
            level.value = before


@functools.cache
def _severity() -> ctypes.c_int | None:
    """Return Kineto's log level in memory, ``None`` where the library does not show it."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.c_int.in_dll(
            ctypes.CDLL(str(library)), "_ZN9libkineto6Logger14severityLevel_E"
        )
    except (OSError, ValueError):
        return None


def _devices() -> list[str]:
    """Return the kinds of devices that are here and that this build of Kineto can profile."""
    supported = torch_profiler._supported_activities()
    return [
        name
        for name, activity in _ACTIVITIES.items()
        if activity in supported and getattr(torch, name).is_available()
    ]


def _config(activities: set[ProfilerActivity]) -> ProfilerConfig:
    device = len(activities) > 1
    return ProfilerConfig(
        ProfilerState.KINETO,
        True,  # report_input_shapes
        True,  # profile_memory
        False,  # with_stack: the observer knows the user's line already
        False,  # with_flops
        False,  # with_modules
        # Grid, block and bytes of a kernel are in its metadata only.
        _ExperimentalConfig(enable_cuda_sync_events=device, expose_kineto_event_metadata=device),
        "",
    )
