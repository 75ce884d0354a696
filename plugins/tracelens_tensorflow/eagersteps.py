"""Where an eager training loop's steps end: an optimizer of Keras has applied its gradients."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.events import Phase
from tracelens_tensorflow.eagerplaces import find, held

if TYPE_CHECKING:
    from tracelens.session import Session

_LIBRARIES = ("keras.", "tf_keras.")
_OPTIMIZERS = (
    ("keras.src.optimizers.base_optimizer", "BaseOptimizer", "apply"),
    ("tf_keras.src.optimizers.optimizer", "Optimizer", "apply_gradients"),
)


def install(session: Session, in_step: Callable[[], bool]) -> Callable[[], None]:
    """Begin to take eager optimizer steps for steps; the result, called, ends it.

    Before gradients are applied, what is known to be bad is told (``nonfinite="raise"``).

    Args:
        session: the recording.
        in_step: tells whether somebody else marks steps (``fit``).
    """
    undo: list[Callable[[], None]] = []
    for module, name, method in _OPTIMIZERS:
        optimizer = getattr(sys.modules.get(module), name, None)
        if optimizer is not None and not hasattr(getattr(optimizer, method), "__tracelens__"):
            undo.append(_wrap(optimizer, method, session, in_step))

    def uninstall() -> None:
        for step in undo:
            step()
        undo.clear()

    return uninstall


def _wrap(
    optimizer: Any, method: str, session: Session, in_step: Callable[[], bool]
) -> Callable[[], None]:
    original = getattr(optimizer, method)

    @functools.wraps(original)
    def apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not tf.executing_eagerly() or in_step():
            return original(self, *args, **kwargs)
        session.explain_pending()
        before = held.place
        if type(self).__module__.startswith(_LIBRARIES):
            # Hundreds of ops, none on a line of the user's: they all stand where this call does.
            held.place = find(1, backward=False)._replace(phase=Phase.OPTIMIZER)
        try:
            result = original(self, *args, **kwargs)
        finally:
            held.place = before
        session.auto_step("tensorflow")
        return result

    apply.__tracelens__ = True  # type: ignore[attr-defined]
    setattr(optimizer, method, apply)

    def unwrap() -> None:
        if getattr(optimizer, method) is apply:
            setattr(optimizer, method, original)

    return unwrap
