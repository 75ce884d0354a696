"""The sentinel as a session's only engine: no op is observed until a step is bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from tracelens.events import NO_ID, OpFlag, Phase
from tracelens_torch.frames import user_place
from tracelens_torch.hits import sink_fields
from tracelens_torch.hooks import install_updates
from tracelens_torch.modules import ModuleNames
from tracelens_torch.nonfinite import is_nonfinite
from tracelens_torch.opwriter import OpRun, OpWriter, thread_id, value_of
from tracelens_torch.replay import StepReplayer
from tracelens_torch.sentinel import Sentinel
from tracelens_torch.sites import Sites

if TYPE_CHECKING:
    from tracelens.session import Session


class SentinelEngine(Sentinel):
    """A `Sentinel` with an engine's face.

    Args:
        session: the recording.
        modules: names of modules and parameters.
        replayer: keeps the running step; one of its own if ``None``.
    """

    name = "sentinel"

    def __init__(
        self,
        session: Session,
        modules: ModuleNames | None = None,
        *,
        replayer: StepReplayer | None = None,
    ) -> None:
        modules = modules or ModuleNames()
        super().__init__(session, modules, replayer=replayer)
        self._sites = Sites(session.writer, modules)
        self._records = OpWriter(session.writer)
        self._uninstall: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to check."""
        super().start()
        self._uninstall = install_updates(self)

    def abandon(self) -> None:
        """Leave torch as it was found, and write nothing more."""
        if self._uninstall is not None:
            self._uninstall()
            self._uninstall = None
        super().abandon()

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has updated its parameters, which may end a step."""
        super().after_update(optimizer)
        self._session.auto_step()

    def enter_closure(self) -> None:
        """Nothing to do: no op is observed."""

    def leave_closure(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing to do: gradients that a closure made are judged after the update."""

    def begin_step(self, step: int, active: bool = True) -> None:
        """A step begins."""
        self._records.step = step
        super().begin_step(step, active)

    def register_data(self, tensors: Sequence[torch.Tensor], name: str) -> int:
        """Write an op of phase ``data`` with the tensors as outputs, unchecked; return its id."""
        if name == "step_input":
            return NO_ID  # Nobody could refer to it: a replay gives its inputs producers itself.
        op_id = int(self._session.writer.reserve_op_id())
        site = self._sites.make(name, *user_place(), None)
        outputs = [(tensor, value_of(op_id, slot)) for slot, tensor in enumerate(tensors)]
        run = OpRun(op_id, int(OpFlag(0)), int(Phase.DATA), site, NO_ID, self._records.now_ns(),
                    -1, thread_id(), (), outputs)  # fmt: skip
        self._records.op(run)
        return op_id

    def value_id(self, tensor: torch.Tensor) -> int:
        """Return -1: a sentinel knows no values."""
        return NO_ID

    def check(self, kind: str, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> int:
        """Report those of the tensors that hold a non-finite value; return how many do."""
        bad = [(n, t) for n, t in zip(names, tensors, strict=True) if is_nonfinite(t)]
        self._sinks.report([sink_fields(kind, n, self._step, t, NO_ID) for n, t in bad])
        return len(bad)

    def nonfinite(self, tensors: Sequence[torch.Tensor]) -> int:
        """Return the index of the first tensor that holds a non-finite value, or -1."""
        return next((i for i, tensor in enumerate(tensors) if is_nonfinite(tensor)), -1)

    def record_update(self, parameters: Sequence[torch.Tensor], name: str) -> int:
        """Return -1: what an update makes bad shows in the next step's loss or gradients."""
        return NO_ID

    def adopt(self, tensors: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None:
        """Nothing to do: a sentinel knows no values."""

    def muted(self) -> AbstractContextManager[None]:
        """Nothing is observed anyway."""
        return nullcontext()

    def begin_update(self, *, observe: bool) -> None:
        """Nothing to do: no op is observed."""

    def end_update(self) -> None:
        """Nothing to do: no op is observed."""

    def forget_modules(self) -> None:
        """Nothing to do: names are looked up on a hit."""

    def drain(self) -> None:
        """Nothing to do: sinks are reported where they are seen."""

    def drop_sinks(self) -> None:
        """Nothing to do: sinks are reported where they are seen."""

    def give_way(self) -> None:
        """Nothing to do: there is no second sentinel."""

    @property
    def hushes(self) -> bool:
        """Whether an update has to be looked at again: it cannot be."""
        return False

    @property
    def suspicious(self) -> bool:
        """Whether this step had a bad update."""
        return self.hits > 0
