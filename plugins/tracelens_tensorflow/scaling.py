"""Loss scaling: tell an overflow that the optimizer handles from a real bug.

Keras' `LossScaleOptimizer` multiplies the loss by a large number; when a gradient overflows it
skips the update and halves the number, which is normal. It is not if the loss itself is bad, if
a NaN was born from finite values, or if the scale falls below one.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracelens.born import nan_born
from tracelens_tensorflow.marks import mark
from tracelens_tensorflow.slots import Slot, slots

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.calls import Call
    from tracelens_tensorflow.replay import Outcome
    from tracelens_tensorflow.twin import Part

REAL_SCALE = 1.0
"""A scale below this cannot overflow what would not overflow unscaled."""

_SCALERS = "_tracelens_scaler"
_MODULE = "keras.src.optimizers.loss_scale_optimizer"


class ScalingWatch:
    """The wrapping of Keras' loss scaling for one session.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._installed = False
        self._in_a_row: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def install(self) -> Callable[[], None]:
        """Begin to watch; the result, called, ends it."""
        module = sys.modules.get(_MODULE)
        if module is None or self._installed:
            return _nothing
        self._installed = True
        optimizer = module.LossScaleOptimizer
        original = optimizer.scale_loss

        def scale_loss(scaler: Any, loss: Any) -> Any:
            scaled = original(scaler, loss)
            _mark(scaler, loss, scaled)
            return scaled

        scale_loss.__doc__ = original.__doc__
        optimizer.scale_loss = scale_loss

        def uninstall() -> None:
            if optimizer.scale_loss is scale_loss:
                optimizer.scale_loss = original

        return uninstall

    def scaler_of(self, part: Part) -> Any:
        """Return the optimizer that scales the loss of a function, None if none does."""
        for number in part.sinks:
            graph = slots[number].graph()
            reference = getattr(graph, _SCALERS, None)
            if reference is not None:
                return reference()
        return None

    def skipped(self, part: Part, sinks: Sequence[Slot]) -> Any:
        """Return the optimizer that has skipped a bad update, None if no update was skipped.

        Args:
            part: the twin of the function.
            sinks: the checks of sinks that tripped.
        """
        if any(slot.sink != "gradient" for slot in sinks):
            return None
        return self.scaler_of(part)

    def handled(self, scaler: Any, call: Call, outcome: Outcome | None) -> bool:
        """Tell whether a skipped update was an overflow as they happen; note it either way.

        Args:
            scaler: the optimizer that skipped it.
            call: the call in which it did.
            outcome: its replay, None if it was not replayed.
        """
        scale = float(scaler.dynamic_scale)
        in_a_row = self._in_a_row[scaler] = self._in_a_row.get(scaler, 0) + 1
        reason = ""
        if scale < REAL_SCALE:
            reason = f"skips have driven the scale below {REAL_SCALE:g}, so the gradients are bad \
at any scale"
        elif outcome is not None and outcome.ran:
            born = nan_born(self._session, call.step)
            if born:
                reason = f"{born} made a NaN from finite values, which no scale cures"
        if reason:
            self._session.note(
                "amp", f"an update was skipped for a real failure: {reason}", "error", call.step
            )
            return False
        self._session.note(
            "overflow_handled",
            f"gradients overflowed and the update was skipped (normal, {in_a_row} in a row); the "
            f"scale is now {scale:g}",
            "info",
            call.step,
        )
        return True

    def went_well(self, part: Part) -> None:
        """A call of the function had nothing bad in it."""
        scaler = self.scaler_of(part)
        if scaler is not None:
            self._in_a_row.pop(scaler, None)


def _mark(scaler: Any, loss: Any, scaled: Any) -> None:
    graph = getattr(scaled, "graph", None) if not hasattr(scaled, "_numpy") else None
    if graph is None or not hasattr(loss, "dtype"):
        return
    mark(loss, "loss", "loss")
    # What a tape is asked for is the scaled loss, which may overflow: a value on the way.
    mark(scaled, "", "")
    setattr(graph, _SCALERS, weakref.ref(scaler))


def _nothing() -> None:
    """There is nothing to take off."""
