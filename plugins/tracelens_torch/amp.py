"""Loss scaling: tell an overflow that the scaler handles from a real bug.

`torch.amp.GradScaler` multiplies the loss by a large number; when a gradient overflows it skips
the update and lowers the number, which is normal. It is not normal if the unscaled loss itself
is bad, if a NaN was born from finite values, or if skips in a row drive the scale below one.
The scaler's methods are wrapped at the class while a session records; its own flag
(``found_inf``) is read, nothing is computed again.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.amp.grad_scaler import GradScaler, OptState

from tracelens.born import nan_born
from tracelens_torch import rerun
from tracelens_torch.nonfinite import is_nonfinite

if TYPE_CHECKING:
    from tracelens.session import Session

REAL_SCALE = 1.0
"""A scale below this cannot overflow what would not overflow unscaled."""

_MAX_LOSSES = 16

HitHandler = Callable[[torch.optim.Optimizer, list[torch.Tensor]], None]


class _ScalerState:
    """What is known of one scaler since its last update.

    Attributes:
        losses: the unscaled losses.
        skipped: the step in which an update was skipped, ``None`` if none was.
        in_a_row: updates in a row in which one was skipped.
        told: a real failure was reported and no update has gone well since.
    """

    __slots__ = ("in_a_row", "losses", "skipped", "told")

    def __init__(self) -> None:
        self.losses: deque[torch.Tensor] = deque(maxlen=_MAX_LOSSES)
        self.skipped: int | None = None
        self.in_a_row = 0
        self.told = False


class AmpWatch:
    """The wrapping of gradient scalers for one session. Calling it takes the wrapping off.

    Args:
        session: the recording.
        on_real: called with the optimizer and the unscaled losses when a skipped update is a
            real failure; parameters are those the step began with.

    Attributes:
        on_skip: called when a scaler's update ends a step whose optimizer update it skipped.
    """

    def __init__(self, session: Session, on_real: HitHandler | None = None) -> None:
        self.on_real = on_real
        self.on_skip: Callable[[], None] | None = None
        self._session = session
        self._states: weakref.WeakKeyDictionary[GradScaler, _ScalerState] = (
            weakref.WeakKeyDictionary()
        )
        self._originals: dict[str, Any] = {}
        self._failed = False

    def scalers(self) -> list[GradScaler]:
        """Return the scalers in use."""
        return list(self._states)

    def install(self) -> None:
        """Wrap ``scale``, ``step`` and ``update``."""
        watch = self
        scale, step, update = GradScaler.scale, GradScaler.step, GradScaler.update
        self._originals = {"scale": scale, "step": step, "update": update}

        def watched_scale(scaler: GradScaler, outputs: Any) -> Any:
            if scaler.is_enabled() and rerun.active() is None:
                watch._scaled(scaler, outputs)
            return scale(scaler, outputs)

        def watched_step(
            scaler: GradScaler, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any
        ) -> Any:
            if not scaler.is_enabled():
                return step(scaler, optimizer, *args, **kwargs)
            replay = rerun.active()
            if replay is not None:
                if scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
                    scaler.unscale_(optimizer)
                replay.at_update()
            number = watch._session.current_step
            result = step(scaler, optimizer, *args, **kwargs)
            watch._stepped(scaler, optimizer, number)
            return result

        def watched_update(scaler: GradScaler, new_scale: Any = None) -> None:
            update(scaler, new_scale)
            if scaler.is_enabled():
                watch._updated(scaler)

        for name, wrapper in (
            ("scale", watched_scale),
            ("step", watched_step),
            ("update", watched_update),
        ):
            wrapper.__name__ = wrapper.__qualname__ = name
            wrapper.__doc__ = self._originals[name].__doc__
            setattr(GradScaler, name, wrapper)

    def __call__(self) -> None:
        """Restore the scaler class; calling it again does nothing."""
        for name, original in self._originals.items():
            setattr(GradScaler, name, original)
        self._originals = {}

    def _state(self, scaler: GradScaler) -> _ScalerState:
        state = self._states.get(scaler)
        if state is None:
            state = self._states[scaler] = _ScalerState()
        return state

    def _scaled(self, scaler: GradScaler, outputs: Any) -> None:
        state = self._state(scaler)
        for output in (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs):
            if isinstance(output, torch.Tensor):
                state.losses.append(output.detach())

    def _stepped(self, scaler: GradScaler, optimizer: torch.optim.Optimizer, number: int) -> None:
        try:
            state = self._state(scaler)
            flags = scaler._found_inf_per_device(optimizer).values()
            if not sum(flag.item() for flag in flags):
                return
            state.skipped = number
            if state.told:
                return
            reason = self._real(scaler, state, number)
            if reason:
                state.told = True
                self._tell_real(optimizer, state, reason, number)
        except Exception as error:
            if not _is_users(error):
                self._fail(error)
                return
            raise

    def _real(self, scaler: GradScaler, state: _ScalerState, number: int) -> str:
        """Return why the skip that is under way is a real failure, "" if it is not."""
        if any(is_nonfinite(loss) for loss in state.losses):
            return "the loss itself is non-finite, before it is scaled"
        born = nan_born(self._session, number)
        if born:
            return f"{born} made a NaN from finite values, which no scale cures"
        if scaler.get_scale() * scaler.get_backoff_factor() < REAL_SCALE:
            return (
                f"{state.in_a_row + 1} skips in a row drive the scale below {REAL_SCALE:g}, so "
                f"the gradients are non-finite at any scale"
            )
        return ""

    def _tell_real(
        self, optimizer: torch.optim.Optimizer, state: _ScalerState, reason: str, number: int
    ) -> None:
        self._session.note(
            "amp",
            f"the gradient scaler skipped an update for a real failure: {reason}",
            "error",
            number,
        )
        if self.on_real is not None:
            self.on_real(optimizer, list(state.losses))

    def _updated(self, scaler: GradScaler) -> None:
        state = self._state(scaler)
        if state.skipped is not None:
            state.in_a_row += 1
            if not state.told:
                self._session.note(
                    "overflow_handled",
                    f"gradients overflowed and the scaler skipped the update (normal, "
                    f"{state.in_a_row} in a row); the scale is now {scaler.get_scale():g}",
                    "info",
                    state.skipped,
                )
            if self.on_skip is not None:
                self.on_skip()
        else:
            state.in_a_row = 0
            state.told = False
        state.skipped = None
        state.losses.clear()

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._session.note(
                "hook_failed", f"watching a gradient scaler failed: {error!r}", "error"
            )


def _is_users(error: Exception) -> bool:
    from tracelens.errors import NonFiniteError

    return isinstance(error, NonFiniteError)


def install_amp(session: Session, on_real: HitHandler | None = None) -> AmpWatch:
    """Begin to watch gradient scalers; the result, called, ends it.

    Args:
        session: the recording.
        on_real: what to do about a skipped update that is a real failure.
    """
    watch = AmpWatch(session, on_real)
    watch.install()
    return watch


def handles(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a gradient scaler has given the update that is under way its own flag.

    A fused optimizer skips the update itself where the flag is up, so its gradients may be
    non-finite and no harm is done.
    """
    return getattr(optimizer, "found_inf", None) is not None
