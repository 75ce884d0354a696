"""Judge gradients on an accelerator without waiting for it.

Fused optimizers look at a device flag, ``found_inf``, and leave everything alone where it is 1
(that is how `torch.amp.GradScaler` skips an update). The sentinel's check writes that flag, so
a bad update is held back by the device itself and the host may read the flag a step later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


def can_defer(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Return whether an optimizer's kernel will look at the flag on an accelerator."""
    return (
        device.type == "cuda"
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        and getattr(optimizer, "found_inf", None) is None
        and not torch.cuda.is_current_stream_capturing()
    )


@dataclass
class Held:
    """One update that the device may have held back, until the flag is read.

    Attributes:
        step: its step.
        optimizer: what made it.
        payload: what the engine needs to judge it.
    """

    step: int
    optimizer: torch.optim.Optimizer
    payload: Any


class DeviceFlag:
    """A non-finite flag on a device, copied to the host without a wait.

    The flag stays up until `lower`, so later updates are held back too while it is read.
    """

    def __init__(self, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.flag = torch.zeros((), dtype=torch.float32, device=device)
        self._host = torch.zeros((), dtype=torch.float32, pin_memory=on_cuda)
        self._event = torch.cuda.Event() if on_cuda else None
        self._posted = False

    def post(self) -> None:
        """Send the flag to the host, behind the work already queued."""
        self._host.copy_(self.flag, non_blocking=True)
        if self._event is not None:
            self._event.record()
        self._posted = True

    def read(self, *, wait: bool = False) -> bool | None:
        """Return the flag as last sent, ``None`` if nothing has arrived.

        Args:
            wait: wait for the device.
        """
        if not self._posted:
            return None
        if self._event is not None:
            if wait:
                self._event.synchronize()
            elif not self._event.query():
                return None
        self._posted = False
        return bool(self._host.item())

    def lower(self) -> None:
        """Set the flag to 0."""
        self.flag.zero_()


class HeldUpdates:
    """Hands fused optimizers the flag, and tells later which update was held back."""

    def __init__(self) -> None:
        self._flags: dict[torch.device, DeviceFlag] = {}
        self._held: dict[torch.device, list[Held]] = {}
        self._dressed: set[int] = set()

    def flag(self, device: torch.device) -> DeviceFlag:
        """Return the device's flag."""
        if device not in self._flags:
            self._flags[device] = DeviceFlag(device)
        return self._flags[device]

    def dress(self, device: torch.device, held: Held) -> None:
        """Give an optimizer the flag for the update it is about to make."""
        optimizer: Any = held.optimizer
        optimizer.found_inf = self.flag(device).flag
        optimizer.grad_scale = None
        self._dressed.add(id(optimizer))
        self._held.setdefault(device, []).append(held)

    def undress(self, optimizer: Any) -> bool:
        """Take the flag off again after the update; False if it had none of ours."""
        if id(optimizer) not in self._dressed:
            return False
        self._dressed.discard(id(optimizer))
        del optimizer.found_inf, optimizer.grad_scale
        for flag in self._flags.values():
            flag.post()
        return True

    def judged(self, *, wait: bool = False) -> list[Held]:
        """Return the first update held back on each device whose flag has arrived and is up.

        Args:
            wait: wait for flags still on their way.
        """
        bad: list[Held] = []
        for device, flag in self._flags.items():
            up = flag.read(wait=wait)
            if up is None:
                continue
            held = self._held.pop(device, [])
            if up and held:
                flag.lower()
                bad.append(held[0])
        return bad
