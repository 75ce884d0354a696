"""Optimizer steps: gradients looked at before, parameters after, and the phase in between."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import _tensor_str
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tracelens.errors import NonFiniteError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from tracelens_torch.modules import ModuleNames


class Updates(Protocol):
    """Who wants to know of an optimizer's steps."""

    def before_update(self, optimizer: Optimizer, *, closure: bool) -> object:
        """Gradients are complete and about to be applied (``closure``: by it, within the step)."""

    def after_update(self, optimizer: Optimizer) -> None:
        """Parameters were updated."""

    def enter_closure(self) -> None:
        """The optimizer's step calls the program's closure, which makes the gradients."""

    def leave_closure(self, optimizer: Optimizer) -> None:
        """The closure returned: gradients are complete and about to be applied."""

    def update_failed(self, error: Exception) -> None:
        """One of the above failed; the program must not."""


def install_updates(updates: Updates) -> Callable[[], None]:
    """Tell ``updates`` of every ``torch.optim`` step; the result, called, ends it."""

    def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # args[0] is the optimizer itself.
        given = kwargs.get("closure") is not None
        closure = given or (len(args) > 1 and callable(args[1]))
        carefully(updates.before_update, optimizer, closure=closure)
        if given:
            return args, {**kwargs, "closure": watched(optimizer, kwargs["closure"])}
        return ((args[0], watched(optimizer, args[1]), *args[2:]), kwargs) if closure else None

    def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        carefully(updates.after_update, optimizer)

    def watched(optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(closure, updated=())
        def run() -> Any:
            carefully(updates.enter_closure)
            result = closure()
            carefully(updates.leave_closure, optimizer)
            return result

        return run

    def carefully(tell: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            tell(*args, **kwargs)
        except NonFiniteError:
            raise
        except Exception as error:
            updates.update_failed(error)

    handles = (
        register_optimizer_step_pre_hook(before),
        register_optimizer_step_post_hook(after),
    )

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def mute_printing(muted: Callable[[], AbstractContextManager[None]]) -> Callable[[], None]:
    """Let the ops with which PyTorch prints a tensor go unobserved; the result, called, ends it.

    It asks which elements are finite and picks those: that is not the program's doing.
    """
    original = _tensor_str._str

    @functools.wraps(original)
    def quietly(*args: Any, **kwargs: Any) -> Any:
        with muted():
            return original(*args, **kwargs)

    def restore() -> None:
        if _tensor_str._str is quietly:
            _tensor_str._str = original

    _tensor_str._str = quietly
    return restore


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """Return an optimizer's parameters, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def names_of(parameters: list[torch.Tensor], modules: ModuleNames) -> list[str]:
    """Return what to call each parameter."""
    return [modules.parameter(p, f"parameter {i}") for i, p in enumerate(parameters)]
