"""The native engine: the C++ observer, driven by the session."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import TYPE_CHECKING

import torch

from tracelens.events import OpFlag, Phase
from tracelens.storage.format import HEADER_HEAD_OFFSET, HEADER_SEALED_OFFSET
from tracelens_torch import opclass
from tracelens_torch.frames import classify_code, user_place
from tracelens_torch.native import build
from tracelens_torch.sinks import SinkFilter
from tracelens_torch.sites import Sites

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.modules import ModuleNames

_KEPT_FLAGS = int(OpFlag.HARMLESS | OpFlag.GARBAGE | OpFlag.CONSTANT)


class NativeEngine:
    """Observes every op of every thread through ``at::RecordFunction``.

    Args:
        session: the recording.
        modules: names of modules and parameters.

    Raises:
        BuildError: the observer cannot be compiled or loaded here.
    """

    name = "native"

    def __init__(self, session: Session, modules: ModuleNames) -> None:
        self._session = session
        self._modules = modules
        self._native = build.load()
        self._sites = Sites(session.writer, modules)
        self._sinks = SinkFilter(session, modules)
        self._own_sites: dict[tuple[str, CodeType | None, int], int] = {}
        self._hits_before = 0
        self._failures = 0
        self._ops_level = session.config.capture != "guard"
        self._hushed = self._muted_update = False
        self._running = False

    def start(self) -> None:
        """Begin to observe."""
        writer = self._session.writer
        native = self._native
        header = writer.header_address
        native.open_ring(
            writer.record_address,
            writer.capacity,
            header + HEADER_HEAD_OFFSET,
            header + HEADER_SEALED_OFFSET,
            writer.op_id_address,
            writer.mode == "stream",
            writer.on_full == "block",
            writer.epoch_monotonic_ns,
        )
        writer.use_native(native.reserve, native.reserve_op_id)
        native.set_functions(
            _classify_op, classify_code, self._sites.make, self._intern, self._on_sink
        )
        native.set_wake(self._session.config.nonfinite != "record")
        self._running = True
        self._watch()

    def _watch(self) -> None:
        self._hits_before = 0
        self._native.start(self._ops_level, True, self._session.config.thorough)

    def stop(self) -> None:
        """Stop observing; what was seen last is reported."""
        if not self._running:
            return
        self._running = False
        if self._hushed or self._muted_update:
            self.end_update()
        self._native.stop()
        self._native.set_wake(False)
        self.drain()
        dropped = int(self._native.counters()["dropped"])
        if dropped:
            self._session.writer.count_dropped(dropped)
            self._session.note(
                "drop",
                f"{dropped} op records were dropped: the disk could not keep up",
                severity="warning",
            )

    def renew(self) -> None:
        """A new window begins: sites that made bad values before are news again."""
        self._native.set_wake(self._session.config.nonfinite != "record")
        if self._native.hits() and self._running:
            self._native.stop()
            self._watch()

    def abandon(self) -> None:
        """In a forked child: observe nothing and write nothing."""
        self._running = False
        self._native.set_enabled(False)
        self._native.close_ring()

    def begin_step(self, step: int, active: bool) -> None:
        """A step begins.

        Args:
            step: its number.
            active: whether ops are recorded in full; otherwise they are only checked.
        """
        if self._hushed or self._muted_update:
            # The last update raised, and its post hook never ran.
            self.end_update()
        self._native.set_step(step)
        self._native.set_ops_level(self._ops_level and active)
        self._hits_before = self._native.hits()

    def end_step(self, step: int) -> dict[str, float]:
        """A step ended: report what it left; return its counters."""
        self.drain()
        return {"hits": float(self._native.hits() - self._hits_before)}

    @property
    def hushes(self) -> bool:
        """Whether ops of a ``torch.optim`` step go unobserved."""
        return not self._ops_level

    @property
    def suspicious(self) -> bool:
        """Whether any op of this step made a non-finite value."""
        return bool(self._native.hits() != self._hits_before)

    def register_data(self, tensors: Sequence[torch.Tensor], name: str) -> int:
        """Give tensors that come from outside a producer of phase ``data``; return its op id."""
        return int(self._native.register_data(tensors, self._site(name), name == "step_input"))

    def value_id(self, tensor: torch.Tensor) -> int:
        """Return the id of the value a tensor holds, -1 if no recorded op wrote it."""
        return int(self._native.value_id(tensor))

    def check(self, kind: str, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> int:
        """Report those of the tensors that hold a non-finite value; return how many do."""
        return int(self._native.check(kind, tensors, list(names), -1))

    def record_update(self, parameters: Sequence[torch.Tensor], name: str) -> int:
        """Tell what an optimizer's step wrote, where its ops were not observed.

        Args:
            parameters: those that were updated.
            name: what to call the update (``"Adam.step"``).

        Returns:
            The index of the first parameter that holds a non-finite value, or -1.
        """
        if self._ops_level:
            return self.nonfinite(parameters)
        return int(self._native.record_update(parameters, name))

    def adopt(self, tensors: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None:
        """Let tensors have the producers that others have, one for one."""
        self._native.adopt(tensors, of)

    def nonfinite(self, tensors: Sequence[torch.Tensor]) -> int:
        """Return the index of the first tensor that holds a non-finite value, or -1."""
        return int(self._native.nonfinite(tensors))

    @contextmanager
    def muted(self) -> Iterator[None]:
        """This thread's ops are not observed meanwhile."""
        before = self._native.mute_thread(True)
        try:
            yield
        finally:
            self._native.mute_thread(before)

    def begin_update(self, *, observe: bool) -> None:
        """An optimizer's step begins on this thread.

        Args:
            observe: watch its ops even at guard level, where its parameters are checked instead.
        """
        self._native.set_phase(int(Phase.OPTIMIZER))
        if not self._ops_level and not observe:
            self._hushed = bool(self._native.hush_thread(True))
            if not self._hushed:
                # A profiler listens: its events must be sent, and need not be looked at here.
                self._native.mute_thread(True)
                self._muted_update = True

    def end_update(self) -> None:
        """The optimizer's step ended."""
        if self._hushed:
            self._native.hush_thread(False)
            self._hushed = False
        if self._muted_update:
            self._native.mute_thread(False)
            self._muted_update = False
        self._native.set_phase(int(Phase.OTHER))

    def step_failed(self, error: BaseException) -> None:
        """An exception ends the step: a bad value that the program had just tested for is why."""
        tested = self._native.take_tested()
        for sink in tested:
            sink["name"] = type(error).__name__
        self._sinks.report(tested)

    def forget_modules(self) -> None:
        """A module died: its address may come to mean another."""
        self._native.forget_sites()

    def drain(self) -> None:
        """Report the sinks that the observer saw, and its failures."""
        if self._native.sinks_pending():
            self._sinks.report(self._native.take_sinks())
        counters_failed = self._native.failures()
        if counters_failed != self._failures:
            self._failures = counters_failed
            failure = str(self._native.counters()["failure"]).splitlines()
            self._session.note(
                "hook_failed",
                f"the observer failed {counters_failed} times: {failure[0] if failure else ''}",
                severity="error",
            )

    def _site(self, name: str) -> int:
        """Return the site of something that the user's current line does."""
        place = user_place()
        site = self._own_sites.get((name, *place))
        if site is None:
            site = self._own_sites[(name, *place)] = self._sites.make(name, *place, None)
        return site

    def drop_sinks(self) -> None:
        """Forget the sinks seen and not reported: a replay has explained them better."""
        self._native.take_sinks()

    def give_way(self) -> None:
        """A sentinel judges updates from now on: sinks wait until it has."""
        self._native.set_wake(False)

    def _on_sink(self) -> None:
        """Run in the user's frame soon after a sink was seen (``nonfinite`` not ``record``)."""
        if not self._running:
            return
        self.drain()
        self._session.explain_pending()

    def _intern(self, kind: str, value: str) -> int:
        return int(self._session.writer.intern(kind, json.loads(value)))


def _classify_op(name: str) -> int:
    return int(opclass.classify(name)) & _KEPT_FLAGS
