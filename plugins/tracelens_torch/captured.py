"""Stores the values of chosen tensors: ``capture="tensors"``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tracelens.captured import CapturedValues

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
        self._values = CapturedValues(session)
        self._modules = modules
        self._value_id = value_id
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
        self._values.step, self._values.active = step, active

    def keep(self, name: str, tensor: torch.Tensor) -> bool:
        """Store a tensor's values under a name if a pattern asks for them; tell whether."""
        if not self._values.open or not self._values.wanted(name):
            return False
        if tensor.layout is not torch.strided or tensor.is_meta:
            return False
        if not self._values.reserve(name, tensor.numel() * tensor.element_size()):
            return False
        with torch.no_grad():
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            stored = _STORED_AS.get(plain.dtype)
            array = (plain.view(stored) if stored is not None else plain).numpy()
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = [int(size) for size in tensor.shape]
        self._values.store(name, self._value_id(tensor), array.tobytes(), dtype, shape)
        return True

    def _on_forward(self, module: Any, args: Any, output: Any) -> None:
        if not self._values.open:
            return
        name = self._modules.of(module, sys._getframe(1))
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        tensors = [item for item in outputs if isinstance(item, torch.Tensor)]
        for slot, tensor in enumerate(tensors):
            self.keep(f"{name}/out" if len(tensors) == 1 else f"{name}/out.{slot}", tensor)
