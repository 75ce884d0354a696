"""What a framework plugin must offer, and how plugins are found.

A plugin registers an entry point in the group ``tracelens.backends`` whose name is the
framework's import name and whose value is a class with the methods of ``Backend``. A session
starts it once that framework has been imported (or when it is imported later), never before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from tracelens.session import Session

ENTRY_POINT_GROUP = "tracelens.backends"


@runtime_checkable
class Backend(Protocol):
    """One framework's side of a session. Every method is called with the GIL held."""

    name: str
    """The framework's import name (``"torch"``)."""

    def start(self, session: Session) -> None:
        """Begin to observe; the session's writer is open."""

    def stop(self) -> None:
        """Stop observing and leave the framework as it was found."""

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins; an inactive step (schedule) is only checked, not recorded op by op."""

    def end_step(self, step: int) -> dict[str, float]:
        """A step ended: judge pending sinks. Returns scalars to store with the step."""

    def step_failed(self, error: BaseException) -> None:
        """An exception of the program leaves the running step; it goes on unchanged."""

    def wrap_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what the decorator should call for a step, so that it can be replayed on a hit."""

    def tap(self, value: Any, name: str) -> bool:
        """Record a tensor under a name; False if the value is not this framework's."""

    def watch(self, module: Any, name: str) -> bool:
        """Name a module's (or parameter collection's) parts; False if not this framework's."""

    def check(self, value: Any, name: str) -> bool:
        """Report a sink if the tensor holds a non-finite value; False if not this framework's."""

    def describe(self) -> dict[str, Any]:
        """What `tracelens doctor` shows: engine in use, why, and how to get a better one."""
