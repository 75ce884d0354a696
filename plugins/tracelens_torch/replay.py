"""Keep what a running step needs to be run again; on a hit, choose how to run it.

The step is stopped where the optimizer would update, so nothing is applied twice: parameters
are those the step began with, random states and buffers are put back to where it began, and
afterwards everything (gradients, random states, buffers) is as before the replay. Python code
of the step that runs before the update runs twice.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tracelens_torch import guards, rerun
from tracelens_torch.batches import tensors_in
from tracelens_torch.nonfinite import is_nonfinite
from tracelens_torch.rerun import Capture, Outcome
from tracelens_torch.roots import MAX_CALLS, RootCall, RootCalls
from tracelens_torch.snapshots import BufferCopies, BufferKeeper, HostRandom, RngState, Versions

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.data import DataWatch
    from tracelens_torch.modules import ModuleNames
    from tracelens_torch.parameters import OptimizerParameters


class StepCall:
    """One call of a decorated step, with what is needed to run it again."""

    __slots__ = (
        "args", "autocast", "fetched_at", "fetched_until", "function", "grad_enabled",
        "kwargs", "left_gradient", "rng", "versions",
    )  # fmt: skip

    def __init__(
        self, function: Callable[..., Any], args: Any, kwargs: Any, host: HostRandom
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.rng = RngState(host)
        self.versions = Versions(tensors_in((args, kwargs)))
        self.grad_enabled = torch.is_grad_enabled()
        self.autocast = guards.autocast_state()
        self.left_gradient: weakref.ref[torch.Tensor] | None = None
        self.fetched_at = 0
        self.fetched_until: int | None = None


@dataclass
class Kept:
    """Everything that led to one update.

    Attributes:
        calls: calls of decorated steps, oldest first.
        roots: calls of root modules, oldest first.
        buffers: buffers at the start of the first of them.
        dropped: calls that were too many to keep.
        updates: updates made by other optimizers since the last step began.
    """

    calls: list[StepCall]
    roots: list[RootCall]
    buffers: BufferCopies
    dropped: int
    updates: int

    def left_gradient(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Return whether a gradient from before the first call was added to, not replaced."""
        reference = self.calls[0].left_gradient if self.calls else None
        gradient = reference() if reference is not None else None
        return gradient is not None and any(p.grad is gradient for p in parameters)


MakeCapture = Callable[["Session", "ModuleNames | None"], Capture]


def default_capture(session: Session, modules: ModuleNames | None) -> Capture:
    """Return the pure-Python capture engine, its records flagged as replayed."""
    from tracelens_torch.dispatch import DispatchEngine

    return DispatchEngine(session, modules=modules, replay=True)


class StepReplayer:
    """Keeps what the running step needs to be run again, and runs it again on a hit.

    It is idle (a decorated call costs one attribute look-up) until a sentinel arms it.

    Args:
        session: the recording.
        make_capture: makes the engine that records a replay.
        modules: names of modules, shared with other engines.

    Attributes:
        armed: whether calls are kept.
        data: the DataLoader watch, set by whoever installs one.
        scalers: the gradient scalers in use, set by whoever watches them.
    """

    def __init__(
        self,
        session: Session,
        make_capture: MakeCapture = default_capture,
        modules: ModuleNames | None = None,
    ) -> None:
        self.armed = False
        self.data: DataWatch | None = None
        self.scalers: Callable[[], Sequence[Any]] = tuple
        self._buffers = BufferKeeper()
        self._host = HostRandom()
        self._roots = RootCalls(self._buffers, self._host)
        self._updates = 0
        self._calls: deque[StepCall] = deque(maxlen=MAX_CALLS)
        self._dropped = 0
        self._depth = 0
        self._session = session
        self._make_capture = make_capture
        self._modules = modules
        self._parameters: OptimizerParameters | None = None

    @property
    def roots(self) -> list[torch.nn.Module]:
        """The root modules that were called, as far as they still live."""
        return list(self._roots.roots)

    def arm(self, parameters: OptimizerParameters) -> None:
        """Begin to keep calls.

        Args:
            parameters: of the optimizers that have made updates.
        """
        if not self.armed:
            self._parameters = parameters
            self._roots.install()
            self.armed = True

    def disarm(self) -> None:
        """Stop keeping calls and forget those kept."""
        if self.armed:
            self.armed = False
            self._roots.remove()
            self._calls.clear()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a decorated call should run: the function, kept for a replay."""

        @functools.wraps(function)
        def kept(*args: Any, **kwargs: Any) -> Any:
            if not self.armed or self._depth or rerun.active() is not None:
                return function(*args, **kwargs)
            call = self._keep(function, args, kwargs)
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                call.fetched_until = self._fetched()
                if self._updates:
                    self._calls.clear()
                # The model's calls are kept only where the function cannot be run again.
                self._roots.keep = call.fetched_until != call.fetched_at or self._updates > 1

        return kept

    def _fetched(self) -> int:
        return self.data.fetched if self.data is not None else 0

    def _keep(self, function: Callable[..., Any], args: Any, kwargs: Any) -> StepCall:
        self._updates = 0
        known = self._parameters
        left = known.left_gradient() if known is not None else None
        if left is None and known is not None and known.known:
            self._calls.clear()  # Nothing was accumulated by the calls since the last update.
            self._dropped = 0
        if not self._calls:
            self._buffers.take()
        elif len(self._calls) == MAX_CALLS:
            self._dropped += 1
        call = StepCall(function, args, kwargs, self._host)
        call.left_gradient = weakref.ref(left) if left is not None else None
        call.fetched_at = self._fetched()
        self._calls.append(call)
        return call

    def kept(self) -> Kept:
        """Return what led to the update that is about to be made."""
        return Kept(
            list(self._calls),
            list(self._roots.calls),
            self._buffers.copies,
            self._dropped + self._roots.dropped,
            self._updates,
        )

    def updated(self) -> None:
        """An optimizer has updated its parameters: begin to keep anew."""
        self._updates += 1
        if not self._depth:
            self._calls.clear()
        self._dropped = 0
        self._roots.forget()

    def replay(
        self,
        step: int,
        own: Sequence[tuple[str, torch.Tensor]],
        others: Sequence[torch.Tensor] = (),
        kept: Kept | None = None,
    ) -> Outcome:
        """Run what led to an update again under capture.

        Args:
            step: the step's number.
            own: names and parameters of the update, whose gradients are compared with the first
                run's.
            others: other parameters that must keep their gradients.
            kept: what led to the update; of the one about to be made if ``None``.

        Returns:
            What came of it. Everything but Python side effects is as before the call.
        """
        outcome = Outcome()
        started = time.perf_counter_ns()
        kept = kept or self.kept()
        try:
            run = self._plan(kept, outcome, [*(parameter for _, parameter in own), *others])
            if run is not None:
                self._remark(kept, outcome)
                calls = kept.calls if outcome.how == "step" else kept.roots
                with guards.held_still(list(self._roots.roots), self.scalers()):
                    rerun.rerun(
                        run,
                        step,
                        own,
                        outcome,
                        others=others,
                        capture=self._make_capture(rerun.quiet(self._session), self._modules),
                        buffers=kept.buffers,
                        inputs=rerun.inputs_of(calls),
                        data=self.data,
                        in_full=self._session.config.capture != "guard",
                    )
                if outcome.how == "model":
                    given = [g for call in kept.roots for gs in call.gradients.values() for g in gs]
                    outcome.outside = any(map(is_nonfinite, given)) and not any(
                        map(is_nonfinite, outcome.outputs)
                    )
                averaged = guards.averages_gradients(self._roots.roots)
                if (
                    outcome.ran
                    and averaged
                    and not any(map(is_nonfinite, outcome.gradients.values()))
                ):
                    outcome.remarks.append("they are finite: other ranks made the bad ones")
                left = kept.left_gradient([parameter for _, parameter in own])
                if outcome.ran and outcome.equal < outcome.compared and left:
                    outcome.remarks.append("gradients were left from before the step")
        except Exception as error:
            outcome.ran = False
            outcome.reason = f"the second run failed: {type(error).__name__}: {_first_line(error)}"
        outcome.outputs.clear()
        outcome.duration_ns = time.perf_counter_ns() - started
        return outcome

    def _plan(
        self, kept: Kept, outcome: Outcome, parameters: Sequence[torch.Tensor]
    ) -> Callable[[], None] | None:
        """Choose between the function and the kept model calls; say why if neither works."""
        outcome.reason = guards.obstacle(parameters, self._roots.roots)
        if outcome.reason:
            return None
        reason = self._step_obstacle(kept)
        if not reason:
            return lambda: rerun.run_steps(kept.calls, outcome)
        if any(call.gradients for call in kept.roots):
            outcome.how = "model"
            if kept.calls:
                outcome.remarks.append(f"the model was run again, not the whole step: {reason}")
            return lambda: rerun.run_roots(kept.roots, outcome)
        outcome.reason = reason
        return None

    def _step_obstacle(self, kept: Kept) -> str:
        if not kept.calls:
            return "no decorated step and no call of a model led to this update"
        if kept.updates:
            return "another optimizer had already updated parameters in this step"
        for call in kept.calls:
            until = self._fetched() if call.fetched_until is None else call.fetched_until
            if until != call.fetched_at:
                return "the step fetches its data itself, so a second run would get other data"
            if guards.takes_iterator(call.function, call.args, call.kwargs):
                return "the step reads from an iterator, so a second run would get other data"
        return ""

    def _remark(self, kept: Kept, outcome: Outcome) -> None:
        remark = outcome.remarks.append
        if kept.dropped:
            remark(f"{kept.dropped} earlier calls that led to this update were not kept")
        calls: Sequence[StepCall | RootCall] = kept.calls if outcome.how == "step" else kept.roots
        if any(call.versions.changed() for call in calls):
            remark("an input was changed in place by the first run, and the second began with it")
        if guards.averages_gradients(self._roots.roots):
            remark("gradients were averaged over ranks, the second run's are this rank's own")
        uncopied = self._buffers.changed_uncopied(kept.buffers)
        if uncopied:
            remark(f"{uncopied} buffers had changed and could not be put back")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
