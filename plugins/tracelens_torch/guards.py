"""What stands in the way of a replay, and what must be held still while one runs."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")


class StepUnwound(BaseException):
    """Ends a replayed step at its update. Not an ``Exception``: the step must not catch it."""


class ReplayStopped(StepUnwound):
    """Ends a replay that must not go on; its text says why."""


class NoCollectives(TorchDispatchMode):
    """Stops a replay that is about to wait for other ranks, which do not replay with it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in _COLLECTIVES:
            raise ReplayStopped(f"the step calls a collective ({func}) and other ranks may not")
        return func(*args, **(kwargs or {}))


def obstacle(parameters: Iterable[torch.Tensor], roots: Iterable[torch.nn.Module]) -> str:
    """Return why nothing of this training can be replayed, "" if it can."""
    for parameter in parameters:
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            return "parameters are updated during backward, so a second run would update them again"
        if hasattr(parameter, "_local_tensor"):
            return "parameters are sharded over ranks, so a second run would need all ranks"
    for root in roots:
        if any("FSDP" in type(module).__name__ for module in root.modules()):
            return "parameters are sharded over ranks, so a second run would need all ranks"
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return ""


def averages_gradients(roots: Iterable[torch.nn.Module]) -> bool:
    """Return whether backward averages gradients over ranks (DistributedDataParallel)."""
    return any(
        getattr(part, "require_backward_grad_sync", False)
        for root in roots
        for part in root.modules()
    )


def takes_iterator(function: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Return whether a function is given an iterator, or reaches one by closure or global name."""
    reachable = [*args, *kwargs.values()]
    plain = getattr(function, "__func__", function)
    for cell in getattr(plain, "__closure__", None) or ():
        try:
            reachable.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    code = getattr(plain, "__code__", None)
    names = getattr(plain, "__globals__", {})
    if code is not None:
        reachable.extend(names[name] for name in code.co_names if name in names)
    return any(
        hasattr(type(value), "__next__") and not isinstance(value, torch.nn.Module)
        for value in reachable
    )


AutocastState = tuple[tuple[str, bool, torch.dtype], ...]


def autocast_state() -> AutocastState:
    """Return (device type, enabled, dtype) of autocast for the devices in use."""
    devices = ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",)
    return tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in devices
    )


@contextmanager
def modes(grad_enabled: bool, autocast: AutocastState) -> Iterator[None]:
    """Run the body under the gradient mode and autocast that a step began with."""
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(grad_enabled))
        for device, enabled, dtype in autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        yield


@contextmanager
def held_still(modules: Iterable[torch.nn.Module], scalers: Iterable[Any]) -> Iterator[None]:
    """Keep a replay from talking to other ranks, compiling, or advancing a gradient scaler.

    Args:
        modules: roots of the models that may run.
        scalers: the gradient scalers in use.
    """
    with ExitStack() as stack:
        for module in modules:
            for part in module.modules():
                if hasattr(part, "require_backward_grad_sync"):
                    for name in ("require_backward_grad_sync", "require_forward_param_sync"):
                        stack.callback(setattr, part, name, getattr(part, name))
                        setattr(part, name, False)
        for scaler in scalers:
            stack.callback(setattr, scaler, "_per_optimizer_states", scaler._per_optimizer_states)
            scaler._per_optimizer_states = defaultdict(_fresh_scaler_state)
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(NoCollectives())
        yield


def _fresh_scaler_state() -> dict[str, Any]:
    from torch.amp import grad_scaler

    return grad_scaler._refresh_per_optimizer_state()


@contextmanager
def gradients_aside(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor | None]]:
    """Take the gradients off the tensors for the body and put the very objects back after it.

    Yields:
        The gradients taken off, in order.
    """
    kept = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    try:
        yield kept
    finally:
        for tensor, gradient in zip(tensors, kept, strict=True):
            tensor.grad = gradient
