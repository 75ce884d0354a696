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

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def abandon(self) -> None: ...
    def begin_step(self, step: int, active: bool) -> None: ...
    def end_step(self, step: int) -> dict[str, float]: ...
    def register_data(self, tensors: Sequence[torch.Tensor], name: str) -> int: ...
    def value_id(self, tensor: torch.Tensor) -> int: ...
    def check(self, kind: str, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> int: ...
    def nonfinite(self, tensors: Sequence[torch.Tensor]) -> int: ...
    def record_update(self, parameters: Sequence[torch.Tensor], name: str) -> int: ...
    def adopt(self, tensors: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None: ...
    def muted(self) -> AbstractContextManager[None]: ...
    def begin_update(self, *, observe: bool) -> None: ...
    def end_update(self) -> None: ...
    def forget_modules(self) -> None: ...
    def drain(self) -> None: ...
    def drop_sinks(self) -> None: ...
    def give_way(self) -> None: ...
    @property
    def hushes(self) -> bool: ...
    @property
    def suspicious(self) -> bool: ...


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
