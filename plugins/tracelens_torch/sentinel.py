"""The sentinel engine: one fused check of loss and gradients a step, and a replay on a hit.

For compiled regions and accelerators, where looking at every op is impossible or dear. The
check runs before the optimizer applies the gradients, so parameters are still those the step
began with and the step can be run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import torch
from tracelens.errors import NonFiniteError
from tracelens.events import NO_ID, SLOT_BITS, OpFlag, Phase, RecordKind
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
    from tracelens_torch.data import DataWatch

MAX_REPLAYS = 5
"""Replays of one session: more of them tell nothing new and cost a step each."""

_MAX_LOSSES = 64
_is_compiling = torch.compiler.is_dynamo_compiling


class SentinelEngine:
    """Checks the loss and the gradients before each update, and replays a step that is bad.

    Args:
        session: the recording.
        replayer: keeps the running step; one of its own if ``None``. The backend wraps the
            decorated step with the same one.
        names: names of modules and parameters, shared with other engines.

    Attributes:
        hits: bad updates seen since the step began.
    """

    name = "sentinel"

    def __init__(
        self,
        session: Session,
        replayer: StepReplayer | None = None,
        names: ModuleNames | None = None,
    ) -> None:
        self.replayer = replayer or StepReplayer(session)
        self.hits = 0
        self._session = session
        names = names or ModuleNames()
        self._parameters = OptimizerParameters(names)
        self._sinks = SinkFilter(session, names)
        self._check = FusedCheck()
        self._held = HeldUpdates()
        self._losses: deque[torch.Tensor] = deque(maxlen=_MAX_LOSSES)
        self._step = 0
        self._replays = 0
        self._clean_update: int | None = None
        self._poisoned = False
        self._failed = False
        self._handles: list[Any] = []
        self._original_backward: Any = None

    # The engine's interface

    def start(self) -> None:
        """Begin to check."""
        self._handles = [
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        ]
        self._wrap_backward()
        self.replayer.arm(self._parameters.have_gradients)

    def stop(self) -> None:
        """Judge what is still on its way, and take every hook off."""
        if self._handles:
            self._judge_held(wait=True)
            self._remove_hooks()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if torch.autograd.backward is self._backward_wrapper:
            torch.autograd.backward = self._original_backward
        self.replayer.disarm()
        self._losses.clear()

    def begin_step(self, step: int, active: bool = True) -> None:
        """A step begins."""
        self._step = step
        self.hits = 0
        self._judge_held()

    def end_step(self, step: int) -> dict[str, float]:
        """The step ended; returns how many bad updates it had."""
        return {"hits": self.hits}

    def register_data(self, tensors: list[torch.Tensor], name: str) -> int:
        """Write an op of phase ``data`` with the tensors as outputs; return its id."""
        writer = self._session.writer
        op_id = writer.reserve_op_id()
        site = writer.intern("site", {"op": name})
        write_data_op(writer, op_id, site, self._step, len(tensors))
        return op_id

    def value_id(self, tensor: torch.Tensor) -> int:
        """Return -1: a sentinel knows no values."""
        return NO_ID

    def attach(self, data: DataWatch) -> None:
        """Let replays know the DataLoader batches."""
        self.replayer.data = data

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a decorated call should run, so that it can be replayed."""
        return self.replayer.wrap(function)

    def abandon(self) -> None:
        """In a forked child: take the hooks off and write nothing more."""
        self._remove_hooks()

    def check(self, kind: str, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> int:
        """Report those of the tensors that hold a non-finite value; return how many do."""
        bad = [(n, t) for n, t in zip(names, tensors, strict=True) if is_nonfinite(t)]
        self._sinks.report([sink_fields(kind, n, self._step, t, NO_ID) for n, t in bad])
        return len(bad)

    def nonfinite(self, tensors: Sequence[torch.Tensor]) -> int:
        """Return the index of the first tensor that holds a non-finite value, or -1."""
        return next((i for i, tensor in enumerate(tensors) if is_nonfinite(tensor)), -1)

    def muted(self) -> AbstractContextManager[None]:
        """Nothing is observed anyway."""
        return nullcontext()

    def begin_update(self, *, observe: bool) -> None:
        """Nothing to do: the sentinel has hooks of its own."""

    def end_update(self) -> None:
        """Nothing to do."""

    def forget_modules(self) -> None:
        """Nothing to do: names are looked up on a hit."""

    def drain(self) -> None:
        """Nothing to do: sinks are reported where they are seen."""

    @property
    def hushes(self) -> bool:
        """Whether ops of an update go unobserved: all ops do."""
        return False

    @property
    def suspicious(self) -> bool:
        """Whether this step had a bad update."""
        return self.hits > 0

    # Hooks

    def _wrap_backward(self) -> None:
        original = self._original_backward = torch.autograd.backward
        losses = self._losses

        def backward(*args: Any, **kwargs: Any) -> Any:
            if not _is_compiling():
                tensors = args[0] if args else kwargs.get("tensors", ())
                if isinstance(tensors, torch.Tensor):
                    tensors = (tensors,)
                replay = rerun.active()
                if replay is not None:
                    replay.losses.extend(tensor.detach() for tensor in tensors)
                elif self._handles:
                    losses.extend(tensor.detach() for tensor in tensors)
            return original(*args, **kwargs)

        self._backward_wrapper = backward
        torch.autograd.backward = backward

    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _is_compiling():
            return
        replay = rerun.active()
        if replay is not None:
            replay.at_update()
        if _closure(args, kwargs):
            return
        try:
            self._parameters.seen(optimizer)
            self._judge_held()
            if self._is_bad(optimizer):
                self.hit(optimizer)
            else:
                self._clean_update = self._step
                self._poisoned = False
        except NonFiniteError:
            raise
        except Exception as error:
            self._fail(error)

    def _after_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _is_compiling():
            return
        try:
            self._held.undress(optimizer)
            if _closure(args, kwargs):
                self._parameters.seen(optimizer)
                if self._any_bad(gradients_of(optimizer)):
                    reason = "the optimizer calls the step itself (a closure), after updates"
                    self.hit(optimizer, outcome=Outcome(reason=reason))
        except NonFiniteError:
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._losses.clear()
            self.replayer.updated()

    # Judging

    def _any_bad(self, gradients: Sequence[torch.Tensor]) -> bool:
        tensors = [values for g in (*gradients, *self._losses) if (values := dense(g)) is not None]
        return bool(tensors) and self._check.any(tensors)

    def _is_bad(self, optimizer: torch.optim.Optimizer) -> bool:
        gradients = gradients_of(optimizer)
        if getattr(optimizer, "found_inf", None) is not None:
            return False  # A gradient scaler has checked these, and judges them.
        if gradients and gradients[0].is_cuda:
            device = gradients[0].device
            if can_defer(optimizer, device) and all(g.device == device for g in gradients):
                self._defer(optimizer, device, gradients)
                return False
            if torch.cuda.is_current_stream_capturing():
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
            self._hit_held(held, kept, losses)

    def _hit_held(self, held: Held, kept: Kept, losses: Sequence[torch.Tensor]) -> None:
        """An update was held back on the device: replay its step, then make the update after all.

        The gradients are those of the replay, the first run's are gone by now.
        """
        self.hits += 1
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
                type(held.optimizer).step.__wrapped__(held.optimizer)
        finally:
            for parameter, gradient in now:
                parameter.grad = gradient

    def hit(self, optimizer: torch.optim.Optimizer, outcome: Outcome | None = None) -> None:
        """Tell that an optimizer is about to apply bad gradients, and find out why.

        Args:
            optimizer: its parameters are those the step began with, unless ``outcome`` says
                why the step cannot be replayed.
            outcome: what came of a replay; made here if ``None``.

        Raises:
            NonFiniteError: ``nonfinite="raise"``.
        """
        self.hits += 1
        named, others = self._parameters_of(optimizer)
        bad_before = [(n, p) for n, p in named if is_nonfinite(p)] if outcome is None else []
        if bad_before and self._poisoned:
            return  # What the last bad update left behind: told already.
        if bad_before:
            name, parameter = bad_before[0]
            self._sinks.report([sink_fields("parameter", name, self._step, parameter, NO_ID)])
            self._session.note(
                "replay",
                f"{len(bad_before)} parameters ({name} first) were non-finite before this step: "
                f"{self._before_words()}",
                "warning",
                self._step,
            )
        if outcome is None:
            if self._replays < MAX_REPLAYS:
                self._replays += 1
                outcome = self.replayer.replay(self._step, named, others)
            else:
                outcome = Outcome(reason=f"{MAX_REPLAYS} steps have been replayed, no more will be")
        self._tell(self._step, list(self._losses), named, outcome)
        self._poisoned = True
        outcome.gradients.clear()
        if self._session.config.nonfinite in ("raise", "break"):
            self._session.explain_pending()

    def _parameters_of(
        self, optimizer: torch.optim.Optimizer
    ) -> tuple[list[tuple[str, torch.Tensor]], list[torch.Tensor]]:
        roots = self.replayer.roots
        return (
            self._parameters.named(optimizer, roots),
            self._parameters.of_others(optimizer, roots),
        )

    def _tell(
        self, step: int, losses: Sequence[torch.Tensor], named: Named, outcome: Outcome
    ) -> None:
        self._sinks.report(sinks_of(step, losses, named, outcome))
        note_replay(self._session, step, outcome)

    def _before_words(self) -> str:
        if self._clean_update is None:
            return "they were so when recording began"
        return f"gradients were finite in step {self._clean_update}, so its optimizer made them so"

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._session.note("hook_failed", f"the sentinel failed: {error!r}", "error")


def _closure(args: Any, kwargs: Any) -> bool:
    """Return whether ``optimizer.step`` was given a closure (the optimizer is the first)."""
    return any(value is not None for value in (*args[1:], kwargs.get("closure")))


def write_data_op(writer: Any, op_id: int, site: int, step: int, n_out: int) -> None:
    """Write the record of a ``data`` op that was not looked into."""
    writer.write(
        writer.reserve(),
        RecordKind.OP,
        Phase.DATA,
        OpFlag(0),
        0,
        site,
        0,
        op_id,
        step,
        NO_ID,
        NO_ID,
        writer.now_ns(),
        -1,
        NO_ID,
        NO_ID,
        NO_ID,
        NO_ID,
        0,
        min(n_out, 255),
        0,
        0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0,
        0,
        0,
        0,
        -1,
        op_id << SLOT_BITS,
    )
