"""PyTorch's side of a session: picks an engine, installs the hooks, names what went wrong."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tracelens.sinks import fields_of
from tracelens_torch import amp, compiled, data, distributed, nonfinite, rerun, update
from tracelens_torch.engines import Engine, choose
from tracelens_torch.hooks import install_updates, mute_printing, names_of, parameters_of
from tracelens_torch.modules import ModuleNames

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from tracelens.session import Session
    from tracelens_torch.profile import ProfileWatch


class TorchBackend:
    """Observes PyTorch. Made and driven by `tracelens.session.Session`."""

    name = "torch"

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._bad_gradients = False
        self._told_bad = False
        self._poisoned = False
        self._failure = ""
        self._sentinel: Any = None
        self._profile: ProfileWatch | None = None
        self._uninstall: list[Callable[[], None]] = []

    def start(self, session: Session) -> None:
        """Begin to observe.

        Args:
            session: the recording; its writer is open.
        """
        self._session = session
        self._modules = ModuleNames(self._forget_modules)
        self._engine, self._reason = choose(session, self._modules)
        self._engine.start()
        self._data = data.install_data(self._engine, session)
        self._uninstall.append(self._data)
        self._uninstall.append(mute_printing(self.muted))
        self._amp = amp.install_amp(session, self._amp_failed)
        self._uninstall.append(self._amp)
        if session.config.profile:
            self._start_profile(session)
        self._collectives = distributed.Collectives(session)
        self._collectives.start()
        self._fingerprints = distributed.Fingerprints(session, self.muted)
        self._compiled = compiled.CompileWatch(session)
        if self._engine.name == "sentinel":
            self._use_sentinel(self._engine)
        else:
            self._uninstall.append(install_updates(self))
            self._uninstall.append(compiled.watch_compile(self._expect_compiled))

    def stop(self) -> None:
        """Stop observing and leave torch as it was found."""
        self._collectives.stop()
        for uninstall in reversed(self._uninstall):
            uninstall()
        self._uninstall.clear()
        engine, self._engine = self._engine, None
        if self._sentinel is not None and self._sentinel is not engine:
            self._sentinel.stop()
        self._sentinel = None
        if engine is not None:
            engine.stop()

    def abandon(self) -> None:
        """In a forked child: take the hooks off and write nothing more."""
        if self._profile is not None:
            self._profile.abandon()
        self._collectives.abandon()
        for uninstall in reversed(self._uninstall):
            uninstall()
        self._uninstall.clear()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.abandon()

    def renew(self) -> None:
        """A new window begins: what was told before is news again."""
        self._bad_gradients = self._told_bad = self._poisoned = False
        renew = getattr(self._engine, "renew", None)
        if renew is not None:
            renew()

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins."""
        engine = self._running()
        self._collectives.begin_step(step)
        engine.begin_step(step, active)
        compiled_seen = self._compiled.poll()
        if self._sentinel is None:
            if compiled_seen:
                self._add_sentinel(engine)
        elif self._sentinel is not engine:
            self._sentinel.begin_step(step, active)
        if self._profile is not None:
            self._profile.begin_step(step, active=active)

    def after_step(self, step: int) -> None:
        """The step's time is taken: a stretch of profiling can be written."""
        if self._profile is not None:
            self._profile.after_step(step)

    def end_step(self, step: int) -> dict[str, float]:
        """A step ended: report what is known to be bad. Returns its counters."""
        engine = self._running()
        if self._sentinel is not None and self._sentinel is not engine:
            if self._sentinel.explained:
                engine.drop_sinks()
            self._sentinel.end_step(step)
        scalars = engine.end_step(step)
        self._collectives.end_step()
        self._fingerprints.end_step(step)
        if scalars.get("hits"):
            self._data.flush(max(0, step - 1), step)
        return scalars

    def step_failed(self, error: BaseException) -> None:
        """An exception of the program leaves the step."""
        failed = getattr(self._engine, "step_failed", None)
        if failed is not None:
            failed(error)

    def wrap_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that gives the step's arguments a producer and can be replayed."""
        replayable: Callable[..., Any] | None = None

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal replayable
            if self._profile is not None:
                self._profile.owners.inputs((args, kwargs))
            if self._engine is not None and (args or kwargs):
                data.register_step_input(self._engine, args, kwargs)
            if self._sentinel is None:
                return function(*args, **kwargs)
            if replayable is None:
                replayable = self._sentinel.wrap(function)
            return replayable(*args, **kwargs)

        return call

    def tap(self, value: Any, name: str) -> bool:
        """Check a tensor under a name; store its values at the ``tensors`` level."""
        if not isinstance(value, torch.Tensor):
            return False
        if rerun.active() is None:
            self._running().check("tap", [value.detach()], [name])
        return True

    def watch(self, module: Any, name: str) -> bool:
        """Name a model's modules and parameters."""
        if not isinstance(module, torch.nn.Module):
            return False
        self._modules.watch(module, name)
        self._running().forget_modules()
        return True

    def fingerprint(self, model: Any, name: str, every: int) -> bool:
        """Compare a model's parameters between ranks at the end of every so many steps."""
        if not isinstance(model, torch.nn.Module):
            return False
        self._fingerprints.add(model, name, every)
        return True

    def check(self, value: Any, name: str) -> bool:
        """Report a sink if the tensor holds a non-finite value."""
        if not isinstance(value, torch.Tensor):
            return False
        engine = self._running()
        if rerun.active() is None and engine.check("check", [value.detach()], [name]):
            engine.drain()
        return True

    def look(self, value: Any) -> dict[str, Any] | None:
        """Return the fields of a tensor's sink if it holds a non-finite value, else none.

        ``None`` if it is not a tensor.
        """
        if not isinstance(value, torch.Tensor):
            return None
        engine = self._running()
        with engine.muted():
            value = value.detach()
            if not nonfinite.is_nonfinite(value):
                return {}
            value_id = engine.value_id(value)
            return fields_of("", "", 0, value_id, nonfinite.describe(value))

    def number(self, value: Any, name: str) -> float | None:
        """Return a scalar that the user gave to a step; ``None`` if it is not a tensor.

        A bad one is reported as a sink of that name; reading it is not taken for the program's
        own read.
        """
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            return None
        engine = self._running()
        with engine.muted():
            value = value.detach()
            number = float(value)
        if not math.isfinite(number):
            engine.check("loss" if "loss" in name.lower() else "read", [value], [name])
            engine.drain()
        return number

    def muted(self) -> AbstractContextManager[None]:
        """What this thread does meanwhile is not observed (a person at a debugger's prompt)."""
        return self._running().muted() if self._engine is not None else nullcontext()

    def describe(self) -> dict[str, Any]:
        """Return what `tracelens doctor` shows."""
        from tracelens_torch.doctor import describe

        return describe(self._engine)

    # torch.optim's steps

    def before_update(self, optimizer: Optimizer, *, closure: bool) -> None:
        """Gradients are complete and about to be applied.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and a gradient or the loss is bad.
        """
        engine = self._engine
        if engine is None:
            return
        if self._profile is not None:
            self._profile.owners.before_update(optimizer)
        if self._sentinel is None and _elsewhere(optimizer):
            self._add_sentinel(engine)
        if self._sentinel is not None and self._sentinel.before_update(optimizer, closure=closure):
            self._bad_gradients = True
            if self._sentinel.explained:
                engine.drop_sinks()
            elif engine is not self._sentinel:
                self._check_gradients(engine, optimizer)
        else:
            self._bad_gradients = engine.suspicious and self._check_gradients(engine, optimizer)
        engine.begin_update(observe=closure)

    def after_update(self, optimizer: Optimizer) -> None:
        """Parameters were updated.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and a parameter is bad.
        """
        engine = self._engine
        if engine is None:
            return
        engine.end_update()
        parameters = parameters_of(optimizer)
        bad = engine.record_update(parameters, f"{type(optimizer).__name__}.step")
        # Bad gradients, now or in an earlier step, are why: they were told when they were seen.
        self._poisoned = bad >= 0 and (self._poisoned or self._bad_gradients)
        if bad >= 0 and not self._poisoned:
            self._explain_update(engine, optimizer, parameters)
        if self._sentinel is not None:
            self._sentinel.after_update(optimizer)
        self._session.auto_step()

    def enter_closure(self) -> None:
        """An optimizer's step calls the program's closure: what it does is no update."""
        if self._engine is not None:
            self._engine.end_update()

    def leave_closure(self, optimizer: Optimizer) -> None:
        """The closure made the gradients that are about to be applied.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and a gradient or the loss is bad.
        """
        engine = self._engine
        if engine is None:
            return
        if engine is not self._sentinel and engine.suspicious:
            self._bad_gradients = self._check_gradients(engine, optimizer)
        engine.begin_update(observe=True)

    def update_failed(self, error: Exception) -> None:
        """A hook around an optimizer's step failed; training goes on."""
        message = f"looking at an optimizer's step failed: {type(error).__name__}: {error}"
        if message != self._failure:
            self._failure = message
            self._session.note("hook_failed", message, severity="error")

    def _check_gradients(self, engine: Engine, optimizer: Optimizer) -> bool:
        """Report bad gradients, unless a gradient scaler is about to drop them."""
        engine.drain()
        parameters = [p for p in parameters_of(optimizer) if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if engine.nonfinite(gradients) < 0:  # type: ignore[arg-type]
            return False
        if amp.handles(optimizer):
            return True
        self._report_gradients(engine, parameters)
        return True

    def _report_gradients(self, engine: Engine, parameters: list[torch.Tensor]) -> None:
        gradients = [p.grad for p in parameters]
        engine.check("gradient", gradients, names_of(parameters, self._modules))  # type: ignore[arg-type]
        engine.drain()
        self._data.flush(max(0, self._session.current_step - 1), self._session.current_step)
        self._session.explain_pending()

    def _explain_update(
        self, engine: Engine, optimizer: Optimizer, parameters: list[torch.Tensor]
    ) -> None:
        """Report parameters that an update made bad, having looked at the update once more."""
        names = names_of(parameters, self._modules)
        reported = parameters
        if engine.hushes and not self._told_bad:
            reported = update.observe_again(optimizer, parameters, engine, self._session)
        self._told_bad = True
        engine.check("parameter", reported, names)
        engine.drain()
        self._session.explain_pending()

    # Inside

    def _start_profile(self, session: Session) -> None:
        from tracelens_torch.profile import ProfileWatch

        engine = self._running()
        self._profile = watch = ProfileWatch(session, self._modules)
        self._uninstall.append(watch.install())
        register_data = engine.register_data

        def register(tensors: Sequence[torch.Tensor], name: str) -> int:
            watch.owners.inputs(tensors)
            return register_data(tensors, name)

        engine.register_data = register  # type: ignore[method-assign]

    def _running(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the backend is not observing")
        return self._engine

    def _forget_modules(self) -> None:
        if self._engine is not None and not sys.is_finalizing():
            self._engine.forget_modules()

    def _expect_compiled(self) -> None:
        """The program asks for a compiled region, which the engine will not see into."""
        if self._engine is not None and self._sentinel is None:
            self._add_sentinel(self._engine)

    def _add_sentinel(self, engine: Engine) -> None:
        """Judge steps by their loss and gradients too: the engine does not see every op."""
        from tracelens_torch.sentinel import Sentinel

        compiled.keep_out_of_dynamo()  # what the import above brought too
        sentinel = Sentinel(self._session, self._modules, muted=engine.muted)
        sentinel.start()
        sentinel.begin_step(self._session.current_step)
        engine.give_way()
        self._use_sentinel(sentinel)

    def _use_sentinel(self, sentinel: Any) -> None:
        self._sentinel = sentinel
        sentinel.attach(self._data)
        sentinel.attach_scalers(self._amp)

    def _amp_failed(self, optimizer: Optimizer, losses: list[torch.Tensor]) -> None:
        """A gradient scaler skipped an update for a real failure."""
        engine = self._running()
        engine.check("loss", losses, ["loss"] * len(losses))
        self._report_gradients(engine, [p for p in parameters_of(optimizer) if p.grad is not None])


def _elsewhere(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer's parameters are on a device that engines do not read."""
    first = next((p for group in optimizer.param_groups for p in group["params"]), None)
    return first is not None and first.device.type != "cpu"
