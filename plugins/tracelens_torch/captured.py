"""Stores the values of chosen tensors: ``capture="tensors"``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from tracelens.events import SLOT_BITS

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.modules import ModuleNames

_STORED_AS = {
    torch.bfloat16: torch.uint16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
}
"""Dtypes that numpy lacks, by what their bits are stored through."""


class ValueCapture:
    """Stores module outputs (``encoder.0/out``), taps and gradients whose names match.

    Stops, with a note, when the budget of bytes is spent.

    Args:
        session: the recording; its config names patterns and budget.
        modules: names of modules.
        value_id: tells the id of the value a tensor holds.
    """

    def __init__(
        self,
        session: Session,
        modules: ModuleNames,
        value_id: Callable[[torch.Tensor], int],
    ) -> None:
        self._session = session
        self._modules = modules
        self._value_id = value_id
        self._patterns = session.config.tensors
        self._left_bytes = session.config.tensor_budget_bytes
        self._spent = False
        self._step = session.current_step
        self._active = True
        self._handle: Any = None

    def install(self) -> None:
        """Watch every module's outputs."""
        self._handle = torch.nn.modules.module.register_module_forward_hook(self._on_forward)

    def remove(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def step(self, step: int, active: bool) -> None:
        """A step begins; nothing of an inactive one is stored."""
        self._step, self._active = step, active

    def keep(self, name: str, tensor: torch.Tensor) -> bool:
        """Store a tensor's values under a name if a pattern asks for them; tell whether."""
        if not self._active or self._spent or not self._wanted(name):
            return False
        if tensor.layout is not torch.strided or tensor.is_meta:
            return False
        size_bytes = tensor.numel() * tensor.element_size()
        if size_bytes > self._left_bytes:
            self._spent = True
            self._session.note(
                "drop",
                f"the budget for tensor values is spent at {name!r}; "
                "raise tensor_budget_bytes= or name fewer tensors",
                severity="warning",
            )
            return False
        self._left_bytes -= size_bytes
        value_id = self._value_id(tensor)
        with torch.no_grad():
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            stored = _STORED_AS.get(plain.dtype)
            array = (plain.view(stored) if stored is not None else plain).numpy()
        self._session.writer.tensor(
            value_id,
            name,
            array.tobytes(),
            str(tensor.dtype).removeprefix("torch."),
            [int(size) for size in tensor.shape],
            self._step,
            value_id >> SLOT_BITS if value_id >= 0 else -1,
        )
        return True

    def _wanted(self, name: str) -> bool:
        return any(
            fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[0], pattern)
            for pattern in self._patterns
        )

    def _on_forward(self, module: Any, args: Any, output: Any) -> None:
        if not self._active or self._spent:
            return
        name = self._modules.of(module, sys._getframe(1))
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        tensors = [item for item in outputs if isinstance(item, torch.Tensor)]
        for slot, tensor in enumerate(tensors):
            self.keep(f"{name}/out" if len(tensors) == 1 else f"{name}/out.{slot}", tensor)
