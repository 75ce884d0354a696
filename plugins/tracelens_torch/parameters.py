"""The parameters of optimizers, by name, and their gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from tracelens_torch.modules import ModuleNames


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the gradients that an optimizer is about to apply."""
    return [
        gradient
        for group in optimizer.param_groups
        for parameter in group["params"]
        if (gradient := parameter.grad) is not None
    ]


class OptimizerParameters:
    """Names the parameters of optimizers after the root modules that hold them.

    Args:
        names: shared with the other engines, or a table of its own.
    """

    def __init__(self, names: ModuleNames | None = None) -> None:
        self._names = names or ModuleNames()
        self._watched: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()

    def seen(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember an optimizer that makes updates."""
        self._optimizers.add(optimizer)

    @property
    def known(self) -> bool:
        """Whether any optimizer has made an update."""
        return bool(self._optimizers)

    def left_gradient(self) -> torch.Tensor | None:
        """Return a gradient that a parameter of a known optimizer holds now, if any does."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        return parameter.grad  # type: ignore[no-any-return]
        return None

    def named(
        self, optimizer: torch.optim.Optimizer, roots: Iterable[torch.nn.Module]
    ) -> list[tuple[str, torch.Tensor]]:
        """Return the names and parameters of an optimizer.

        Args:
            optimizer: the one that is about to make an update.
            roots: modules to take names from.
        """
        for root in roots:
            if root not in self._watched:
                self._watched.add(root)
                self._names.watch(root)
        return [
            (self._names.parameter(parameter, f"group {place} parameter {index}"), parameter)
            for place, group in enumerate(optimizer.param_groups)
            for index, parameter in enumerate(group["params"])
        ]

    def of_others(
        self, optimizer: torch.optim.Optimizer, roots: Iterable[torch.nn.Module]
    ) -> list[torch.Tensor]:
        """Return every known parameter that the optimizer does not update."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        found = {
            id(parameter): parameter
            for known in self._optimizers
            for group in known.param_groups
            for parameter in group["params"]
        }
        found.update({id(p): p for root in roots for p in root.parameters()})
        return [parameter for key, parameter in found.items() if key not in own]
