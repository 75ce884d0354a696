"""The sentinel: one fused check of loss and gradients before each update, a replay on a hit.

For compiled regions and accelerators, where looking at every op is impossible or dear. The
check runs before the optimizer applies the gradients, so parameters are still those the step
began with and the step can be run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tracelens.errors import NonFiniteError
from tracelens.events import NO_ID
from tracelens_torch import rerun
from tracelens_torch.deferred import Held, HeldUpdates, can_defer
from tracelens_torch.hits import Named, note_replay, sink_fields, sinks_of
from tracelens_torch.modules import ModuleNames
from tracelens_torch.nonfinite import FusedCheck, dense, is_nonfinite
from tracelens_torch.parameters import OptimizerParameters, gradients_of
from tracelens_torch.replay import Kept, StepReplayer
from tracelens_torch.rerun import Outcome
from tracelens_torch.sinks import SinkFilter

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.amp import AmpWatch
    from tracelens_torch.data import DataWatch

MAX_REPLAYS = 5
"""Replays of one session: more of them tell nothing new and cost a step each."""

_MAX_LOSSES = 64
_is_compiling = torch.compiler.is_dynamo_compiling


class Sentinel:
    """Checks the loss and the gradients before each update, and replays a step that is bad.

    Args:
        session: the recording.
        names: names of modules and parameters.
        replayer: keeps the running step; one of its own if ``None``.
        muted: makes the engine that observes ops meanwhile look away from a block.

    Attributes:
        hits: bad updates seen since the step began.
        explained: a replay has told the cause of the last of them.
        replayer: the backend wraps the decorated step with it.
    """

    def __init__(
        self,
        session: Session,
        names: ModuleNames | None = None,
        *,
        replayer: StepReplayer | None = None,
        muted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        names = names or ModuleNames()
        self.replayer = replayer or StepReplayer(session, modules=names)
        self.hits = 0
        self.explained = False
        self._session = session
        self._parameters = OptimizerParameters(names)
        self._sinks = SinkFilter(session, names)
        self._check = FusedCheck()
        self._held = HeldUpdates()
        self._muted = muted
        self._beside = muted is not nullcontext
        self._losses: deque[torch.Tensor] = deque(maxlen=_MAX_LOSSES)
        self._step = 0
        self._closure = False
        self._replays = 0
        self._clean_update: int | None = None
        self._poisoned = False
        self._failed = False
        self._backward: tuple[Any, Any] | None = None

    def start(self) -> None:
        """Begin to check."""
        if self._backward is None:
            self._wrap_backward()
            self.replayer.arm(self._parameters)

    def stop(self) -> None:
        """Judge what is still on its way, and leave torch as it was found."""
        if self._backward is not None:
            self._judge_held(wait=True)
            self.abandon()

    def abandon(self) -> None:
        """Leave torch as it was found, and write nothing more."""
        if self._backward is not None:
            original, wrapper = self._backward
            self._backward = None
            if torch.autograd.backward is wrapper:
                torch.autograd.backward = original
            self.replayer.disarm()
            self._losses.clear()

    def begin_step(self, step: int, active: bool = True) -> None:
        """A step begins."""
        self._step = step
        self.hits = 0
        self.explained = False
        self._judge_held()

    def end_step(self, step: int) -> dict[str, float]:
        """The step ended; returns how many bad updates it had."""
        return {"hits": float(self.hits)}

    def attach(self, data: DataWatch) -> None:
        """Let replays know the DataLoader batches."""
        self.replayer.data = data

    def attach_scalers(self, watch: AmpWatch) -> None:
        """Judge the skipped updates of gradient scalers that are real failures."""
        self.replayer.scalers = watch.scalers
        watch.on_real = self.hit_under_scaler
        watch.on_skip = self._forget_step

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a decorated call should run, so that it can be replayed."""
        return self.replayer.wrap(function)

    def _wrap_backward(self) -> None:
        original = torch.autograd.backward
        losses = self._losses

        def backward(*args: Any, **kwargs: Any) -> Any:
            if not _is_compiling() and self._backward is not None:
                tensors = args[0] if args else kwargs.get("tensors", ())
                if isinstance(tensors, torch.Tensor):
                    tensors = (tensors,)
                replay = rerun.active()
                kept = losses if replay is None else replay.losses
                kept.extend(t.detach() for t in tensors if isinstance(t, torch.Tensor))
            return original(*args, **kwargs)

        torch.autograd.backward = backward
        self._backward = (original, backward)

    # Updates

    def before_update(self, optimizer: torch.optim.Optimizer, *, closure: bool) -> bool:
        """An optimizer is about to apply its gradients; returns whether they (or the loss) are bad.

        Raises:
            StepUnwound: a replay ends here.
            NonFiniteError: ``nonfinite="raise"`` and they are bad.
        """
        if _is_compiling():
            return False
        replay = rerun.active()
        if replay is not None:
            replay.at_update()
        self._closure = closure
        if closure:
            return False
        try:
            with self._muted():
                self._parameters.seen(optimizer)
                self._judge_held()
                bad = self._is_bad(optimizer)
                if bad:
                    self.hit(optimizer, leave=self._beside)
                else:
                    self._clean_update = self._step
                    self._poisoned = False
                return bad
        except NonFiniteError:
            raise
        except Exception as error:
            self._fail(error)
            return False

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has updated its parameters.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and its closure made bad gradients.
        """
        if _is_compiling():
            return
        try:
            with self._muted():
                self._held.undress(optimizer)
                if self._closure:
                    self._parameters.seen(optimizer)
                    if self._any_bad(gradients_of(optimizer)):
                        reason = "the optimizer calls the step itself (a closure), after updates"
                        self.hit(optimizer, outcome=Outcome(reason=reason))
        except NonFiniteError:
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._forget_step()

    def _forget_step(self) -> None:
        """The update was made, or a scaler skipped it."""
        self._losses.clear()
        self.replayer.updated()

    # Judging

    def _any_bad(self, gradients: Sequence[torch.Tensor]) -> bool:
        return self._check.any([*gradients, *self._losses])

    def _is_bad(self, optimizer: torch.optim.Optimizer) -> bool:
        gradients = gradients_of(optimizer)
        if getattr(optimizer, "found_inf", None) is not None:
            return False  # A gradient scaler has checked these, and judges them.
        if gradients:
            device = gradients[0].device
            # Once an update was bad, waiting for the device costs nothing that still matters.
            if (
                not self._poisoned
                and can_defer(optimizer, device)
                and all(gradient.device == device for gradient in gradients)
            ):
                self._defer(optimizer, device, gradients)
                return False
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return False
        return self._any_bad(gradients)

    def _defer(
        self,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        gradients: Sequence[torch.Tensor],
    ) -> None:
        losses = [loss for loss in self._losses if loss.device == device]
        tensors = [values for g in (*gradients, *losses) if (values := dense(g)) is not None]
        self._check.flag(tensors, self._held.flag(device).flag)
        payload = (self.replayer.kept(), list(self._losses))
        self._held.dress(device, Held(self._step, optimizer, payload))

    def _judge_held(self, *, wait: bool = False) -> None:
        for held in self._held.judged(wait=wait):
            kept, losses = held.payload
            with self._muted():
                self._hit_held(held, kept, losses)

    def _hit_held(self, held: Held, kept: Kept, losses: Sequence[torch.Tensor]) -> None:
        """An update was held back on the device: replay its step, then make the update after all.

        The gradients are those of the replay, the first run's are gone by now.
        """
        self.hits += 1
        self._poisoned = True
        named, others = self._parameters_of(held.optimizer)
        outcome = self.replayer.replay(held.step, named, others, kept)
        # The first run's gradients are gone by now: there is nothing to compare with.
        outcome.compared = outcome.equal = outcome.blank = 0
        now = [(parameter, parameter.grad) for _, parameter in named]
        try:
            for name, parameter in named:
                parameter.grad = outcome.gradients.get(name)
            outcome.remarks.append(
                "the update was held back until now, so steps since then began without it"
            )
            self._tell(held.step, losses, named, outcome)
            if outcome.ran:
                step: Any = type(held.optimizer).step
                getattr(step, "__wrapped__", step)(held.optimizer)
        finally:
            for parameter, gradient in now:
                parameter.grad = gradient

    def hit_under_scaler(
        self, optimizer: torch.optim.Optimizer, losses: list[torch.Tensor]
    ) -> None:
        """Tell that a scaler skipped an update for a real failure, and find out why.

        Args:
            optimizer: whose update was skipped.
            losses: the losses before they were scaled.

        Raises:
            NonFiniteError: ``nonfinite="raise"``.
        """
        self._losses.clear()
        self._losses.extend(losses)
        with self._muted():
            self.hit(optimizer)
        # The update was skipped: what is bad in the next step was born there.
        self._poisoned = False

    def hit(
        self,
        optimizer: torch.optim.Optimizer,
        outcome: Outcome | None = None,
        *,
        leave: bool = False,
    ) -> None:
        """Tell that an optimizer is about to apply bad gradients, and find out why.

        Args:
            optimizer: its parameters are those the step began with, unless ``outcome`` says
                why the step cannot be replayed.
            outcome: what came of a replay; made here if ``None``.
            leave: leave to the engine beside what a replay cannot tell.

        Raises:
            NonFiniteError: ``nonfinite="raise"``.
        """
        self.hits += 1
        named, others = self._parameters_of(optimizer)
        bad_before = [(n, p) for n, p in named if is_nonfinite(p)] if outcome is None else []
        if bad_before and self._poisoned:
            self.explained = True  # What the last bad update left behind: told already.
            return
        if bad_before:
            self._tell_bad_before(bad_before)
        if outcome is None:
            if self._replays < MAX_REPLAYS:
                self._replays += 1
                outcome = self.replayer.replay(self._step, named, others)
            else:
                outcome = Outcome(reason=f"{MAX_REPLAYS} steps have been replayed, no more will be")
        self._tell(self._step, list(self._losses), named, outcome, leave=leave)
        self._poisoned = True
        outcome.gradients.clear()
        if self._session.config.nonfinite in ("raise", "break"):
            self._session.explain_pending()

    def _tell_bad_before(self, bad: Named) -> None:
        name, parameter = bad[0]
        self._sinks.report([sink_fields("parameter", name, self._step, parameter, NO_ID)])
        if self._clean_update is None:
            how = "they were so when recording began"
        else:
            how = (
                f"gradients were finite in step {self._clean_update}, so its optimizer made them so"
            )
        self._session.note(
            "replay",
            f"{len(bad)} parameters ({name} first) were non-finite before this step: {how}",
            "warning",
            self._step,
        )

    def _parameters_of(
        self, optimizer: torch.optim.Optimizer
    ) -> tuple[list[tuple[str, torch.Tensor]], list[torch.Tensor]]:
        roots = self.replayer.roots
        return (
            self._parameters.named(optimizer, roots),
            self._parameters.of_others(optimizer, roots),
        )

    def _tell(
        self,
        step: int,
        losses: Sequence[torch.Tensor],
        named: Named,
        outcome: Outcome,
        *,
        leave: bool = False,
    ) -> None:
        """Report what is bad; with ``leave`` only if the replay can name where it was made."""
        # What ran between the models was seen by the engine beside, and by nobody else.
        self.explained = outcome.ran and not (leave and outcome.outside)
        if self.explained or not leave:
            self._sinks.report(sinks_of(step, losses, named, outcome))
        note_replay(self._session, step, outcome)
        if self.replayer.data is not None:
            self.replayer.data.flush(max(0, step - 1), step)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._session.note("hook_failed", f"the sentinel failed: {error!r}", "error")
