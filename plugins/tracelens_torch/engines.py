"""The engines' common face, and which one a session gets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from tracelens.session import Session
    from tracelens_torch.modules import ModuleNames


class Engine(Protocol):
    """What observes ops. Every method is called with the GIL held.

    Attributes:
        name: ``"native"``, ``"python"`` or ``"sentinel"``.
        hushes: whether ops of a ``torch.optim`` step go unobserved, so that a bad update has to
            be looked at again.
    """

    name: str

    def start(self) -> None:
        """Begin to observe."""

    def stop(self) -> None:
        """Stop observing; what was seen last is reported."""

    def abandon(self) -> None:
        """In a forked child: observe nothing and write nothing."""

    def begin_step(self, step: int, active: bool) -> None:
        """A step begins; an inactive one is only checked, not recorded op by op."""

    def end_step(self, step: int) -> dict[str, float]:
        """A step ended: report what it left; return its counters (``hits``)."""

    def register_data(self, tensors: Sequence[torch.Tensor], name: str) -> int:
        """Give tensors that come from outside a producer of phase ``data``; return its op id."""

    def value_id(self, tensor: torch.Tensor) -> int:
        """Return the id of the value a tensor holds, -1 if no recorded op wrote it."""

    def check(self, kind: str, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> int:
        """Report those of the tensors that hold a non-finite value; return how many do."""

    def nonfinite(self, tensors: Sequence[torch.Tensor]) -> int:
        """Return the index of the first tensor that holds a non-finite value, or -1."""

    def record_update(self, parameters: Sequence[torch.Tensor], name: str) -> int:
        """Tell what an unobserved update wrote; return the index of its first bad one, or -1."""

    def adopt(self, tensors: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None:
        """Let tensors have the producers that others have, one for one."""

    def muted(self) -> AbstractContextManager[None]:
        """This thread's ops are not observed meanwhile."""

    def begin_update(self, *, observe: bool) -> None:
        """An optimizer's step begins on this thread; ``observe``: whatever the level."""

    def end_update(self) -> None:
        """The optimizer's step ended."""

    def forget_modules(self) -> None:
        """A module died or was renamed: names have to be looked up again."""

    def drain(self) -> None:
        """Report the sinks that were seen."""

    def drop_sinks(self) -> None:
        """Forget the sinks that were seen and not yet reported."""

    def give_way(self) -> None:
        """A sentinel runs beside from now on: it judges updates."""

    @property
    def hushes(self) -> bool:
        """Whether ops of a ``torch.optim`` step go unobserved."""

    @property
    def suspicious(self) -> bool:
        """Whether any op of this step made a non-finite value."""


def choose(session: Session, modules: ModuleNames) -> tuple[Engine, str]:
    """Return the engine for a session and why it was chosen.

    ``engine="native"`` that cannot be built is an error; with no engine named, the pure-Python
    one takes its place and the trace says so.

    Raises:
        BuildError: ``engine="native"`` and the observer cannot be compiled or loaded.
    """
    wanted = session.config.engine
    if wanted == "sentinel":
        from tracelens_torch.sentinel_engine import SentinelEngine

        return SentinelEngine(session, modules), "asked for"
    if wanted != "python" and session.config.capture != "tensors":
        from tracelens_torch.native import build
        from tracelens_torch.native_engine import NativeEngine

        try:
            if not build.built() and build.compiler() and not session.config.quiet:
                sys.stderr.write("tracelens: compiling the native observer, once (about 30 s)\n")
            return NativeEngine(session, modules), "asked for" if wanted else "it works here"
        except build.BuildError as error:
            if wanted == "native":
                raise
            session.note("engine", f"the Python engine is in use: {error}", severity="info")
            reason = str(error)
    else:
        reason = "asked for" if wanted else "values are captured"
    from tracelens_torch.dispatch import DispatchEngine

    return DispatchEngine(session, modules=modules), reason
