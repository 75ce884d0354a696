"""Loss scaling: tell an overflow that the optimizer handles from a real bug.

Keras' `LossScaleOptimizer` multiplies the loss by a large number; when a gradient overflows it
skips the update and halves the number, which is normal. It is not if the loss itself is bad, if
a NaN was born from finite values, or if the scale falls below one.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.born import nan_born
from tracelens_tensorflow import tensors
from tracelens_tensorflow.marks import mark
from tracelens_tensorflow.slots import Slot, slots

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.twin import Part

REAL_SCALE = 1.0
"""A scale below this cannot overflow what would not overflow unscaled."""

_SCALERS = "_tracelens_scaler"
_MODULE = "keras.src.optimizers.loss_scale_optimizer"


class ScalingWatch:
    """The wrapping of Keras' loss scaling for one session.

    Args:
        session: the recording.
        report: takes the sinks of eager code that no scaling excuses.
        in_step: tells whether somebody else marks steps (``fit``).
    """

    def __init__(
        self,
        session: Session,
        report: Callable[[list[dict[str, Any]]], None],
        in_step: Callable[[], bool] = bool,
    ) -> None:
        self._session = session
        self._installed = False
        self._report = report
        self._in_step = in_step
        self._scaled: Any = None
        self._held: list[dict[str, Any]] = []
        self._in_a_row: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def hold(self, sinks: list[dict[str, Any]]) -> bool:
        """Wait with the bad gradients of an eager tape for what the optimizer makes of them.

        Args:
            sinks: fields of ``sink`` events.

        Returns:
            Whether the loss was scaled, so that the optimizer will judge.
        """
        if self._scaled is None:
            return False
        # What the tape was asked for is the scaled loss: no sink.
        self._held += [sink for sink in sinks if sink["sink"] == "gradient"]
        return True

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
            if hasattr(scaled, "_numpy"):
                self._scaled = None if tensors.is_bad(tf.convert_to_tensor(loss)) else scaler
            else:
                _mark(scaler, loss, scaled)
            return scaled

        apply = optimizer.apply

        @functools.wraps(apply)
        def watched_apply(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            result = apply(scaler, *args, **kwargs)
            if tf.executing_eagerly():
                self._applied(scaler)
            return result

        scale_loss.__doc__ = original.__doc__
        optimizer.scale_loss, optimizer.apply = scale_loss, watched_apply

        def uninstall() -> None:
            if optimizer.scale_loss is scale_loss:
                optimizer.scale_loss = original
            if optimizer.apply is watched_apply:
                optimizer.apply = apply

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

    def handled(self, scaler: Any, step: int, *, recorded: bool) -> bool:
        """Tell whether a skipped update was an overflow as they happen; note it either way.

        Args:
            scaler: the optimizer that skipped it.
            step: the step in which it did.
            recorded: the ops that led to it are recorded.
        """
        scale = float(scaler.dynamic_scale)
        in_a_row = self._in_a_row[scaler] = self._in_a_row.get(scaler, 0) + 1
        reason = ""
        if scale < REAL_SCALE:
            reason = f"skips have driven the scale below {REAL_SCALE:g}, so the gradients are bad \
at any scale"
        elif recorded:
            born = nan_born(self._session, step)
            if born:
                reason = f"{born} made a NaN from finite values, which no scale cures"
        if reason:
            self._session.note(
                "amp", f"an update was skipped for a real failure: {reason}", "error", step
            )
            return False
        self._session.note(
            "overflow_handled",
            f"gradients overflowed and the update was skipped (normal, {in_a_row} in a row); the "
            f"scale is now {scale:g}",
            "info",
            step,
        )
        return True

    def _applied(self, scaler: Any) -> None:
        """An optimizer has applied, or skipped, the gradients of an eager tape."""
        held, self._held = self._held, []
        self._scaled = None
        if not held:
            self._in_a_row.pop(scaler, None)
            return
        session = self._session
        if not self.handled(scaler, session.current_step, recorded=True):
            self._report(held)
            session.explain_pending()
        if not self._in_step():
            session.auto_step("tensorflow")

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
