"""TensorFlow's side of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.session import Session


class TensorFlowBackend:
    """Observes TensorFlow. Made and driven by `tracelens.session.Session`."""

    name = "tensorflow"

    def start(self, session: Session) -> None:
        """Begin to observe."""
        self._session = session

    def stop(self) -> None:
        """Stop observing and leave TensorFlow as it was found."""

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins."""

    def end_step(self, step: int) -> dict[str, float]:
        """A step ended."""
        return {}

    def step_failed(self, error: BaseException) -> None:
        """An exception of the program leaves the step."""

    def wrap_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what the decorator calls for a step."""
        return function

    def tap(self, value: Any, name: str) -> bool:
        """Record a tensor under a name."""
        return False

    def watch(self, module: Any, name: str) -> bool:
        """Name a model's parts."""
        return False

    def check(self, value: Any, name: str) -> bool:
        """Report a sink if the tensor holds a non-finite value."""
        return False

    def describe(self) -> dict[str, Any]:
        """Return what `tracelens doctor` shows."""
        return {}
