"""Which memory is whose: looked up by address, at the moments when it is certain.

- A parameter is one of a named model or of an optimizer that has stepped.
- A gradient is what a parameter's ``grad`` holds when an optimizer is about to apply it.
- Optimizer state is every tensor in the ``state`` of an optimizer that has stepped.
- An input is a tensor of a batch of a DataLoader or an argument of a decorated step.

What is left is told by when it lived: see ``memory``.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tracelens_torch.batches import tensors_in

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from tracelens.session import Session
    from tracelens_torch.modules import ModuleNames

PARAMETER, GRADIENT, ACTIVATION, OPTIMIZER_STATE, INPUT, TEMPORARY = range(6)
"""Numbers into ``storage.tables.MEMORY_OWNERS``."""

MAX_MARKS = 4096
"""Moments kept of one stretch: a stretch ends long before it has as many."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What certain addresses held at a moment.

    Attributes:
        t_ns: since the trace's epoch.
        owner: ``PARAMETER`` …
        addresses: where blocks begin.
    """

    t_ns: int
    owner: int
    addresses: list[int]


@dataclass(frozen=True, slots=True)
class Held:
    """A block that was there when a stretch began.

    Attributes:
        address: where it begins.
        size_bytes: of its storage.
        device: ``"cpu"``, ``"cuda:0"``.
        owner: ``PARAMETER`` …
    """

    address: int
    size_bytes: int
    device: str
    owner: int


class Owners:
    """Collects who owns which addresses during a stretch.

    Args:
        session: the recording.
        modules: names of modules and parameters.

    Attributes:
        held: known blocks that were there when the stretch began.
        held_at_end: parameters and optimizer state that are there when it ends.
        marks: what was seen since, in order of time.
    """

    def __init__(self, session: Session, modules: ModuleNames) -> None:
        self._session = session
        self._modules = modules
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._on = False
        self.held: list[Held] = []
        self.held_at_end: list[Held] = []
        self.marks: list[Mark] = []

    def begin(self) -> None:
        """A stretch begins: take stock."""
        self.marks = []
        parameters = self._parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.held = _held(
            ((PARAMETER, parameters), (OPTIMIZER_STATE, self._state()), (GRADIENT, gradients))
        )
        self.held_at_end = []
        self._on = True

    def end(self) -> None:
        """The stretch ends: parameters and state that were made in it are known now."""
        self._on = False
        parameters, state = self._parameters(), self._state()
        self._mark(OPTIMIZER_STATE, state)
        self._mark(PARAMETER, parameters)
        self._mark(GRADIENT, [p.grad for p in parameters if p.grad is not None])
        self.held_at_end = _held(((PARAMETER, parameters), (OPTIMIZER_STATE, state)))

    def before_update(self, optimizer: Optimizer) -> None:
        """An optimizer is about to apply gradients."""
        self._optimizers.add(optimizer)
        if self._on and len(self.marks) < MAX_MARKS:
            addresses = [
                gradient.data_ptr()
                for group in optimizer.param_groups
                for parameter in group["params"]
                if (gradient := parameter.grad) is not None and not gradient.is_sparse
            ]
            self.marks.append(Mark(self._session.writer.now_ns(), GRADIENT, addresses))

    def inputs(self, batch: Any) -> None:
        """A step was given this, of which the tensors are looked for."""
        if self._on and len(self.marks) < MAX_MARKS:
            self._mark(INPUT, tensors_in(batch))

    def _mark(self, owner: int, tensors: Sequence[torch.Tensor]) -> None:
        addresses = [block[0] for block in map(_block, tensors) if block is not None]
        if addresses:
            self.marks.append(Mark(self._session.writer.now_ns(), owner, addresses))

    def _parameters(self) -> list[torch.Tensor]:
        found = {id(p): p for p in self._modules.parameters()}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                found.update({id(p): p for p in group["params"]})
        return list(found.values())

    def _state(self) -> list[torch.Tensor]:
        return [
            value
            for optimizer in self._optimizers
            for state in optimizer.state.values()
            if isinstance(state, dict)
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]


def _block(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Return address and size of the storage of a plain tensor, ``None`` for others."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    try:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
    except (RuntimeError, NotImplementedError):
        return None
    return (address, storage.nbytes()) if address else None


def _held(groups: Sequence[tuple[int, Sequence[torch.Tensor]]]) -> list[Held]:
    """Return the blocks of tensors, each once."""
    found: dict[tuple[str, int], Held] = {}
    for owner, tensors in groups:
        for tensor in tensors:
            block = _block(tensor)
            if block is not None:
                device = str(tensor.device)
                found.setdefault((device, block[0]), Held(*block, device, owner))
    return list(found.values())
