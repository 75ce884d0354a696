"""What must be put back before a step can be run again: random states and mutated buffers."""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import _unsafe_preserve_version_counter

LEARNING_STEPS = 3
"""Steps after which it is believed known whether a program uses Python's and NumPy's RNG."""

MAX_BUFFER_BYTES = 256 << 20
"""Buffers that may be copied while it is not yet known which of them a model writes to."""


class HostRandom:
    """Python's and NumPy's global generators, read only if the program was seen to use them.

    Reading both costs 40-80 microseconds; torch's CPU state costs one.
    """

    def __init__(self) -> None:
        self._left = LEARNING_STEPS
        self._python = self._numpy = True
        self._before: tuple[Any, Any] | None = None

    def take(self) -> tuple[Any, Any]:
        """Return both states, ``None`` for one that the program does not use."""
        if self._left:
            self._left -= 1
            states = (random.getstate(), _numpy_state())
            if self._before is not None:
                used = [not _same(old, new) for old, new in zip(self._before, states, strict=True)]
                self._used = [a or b for a, b in zip(self._used, used, strict=True)]
            else:
                self._used = [False, False]
            self._before = states
            if not self._left:
                self._python, self._numpy = self._used
                self._before = None
            return states
        if not self._python and not self._numpy:
            return (None, None)
        return (
            random.getstate() if self._python else None,
            _numpy_state() if self._numpy else None,
        )


class RngState:
    """The random states at one moment: torch CPU, torch accelerators in use, Python, NumPy."""

    __slots__ = ("_cpu", "_cuda", "_numpy", "_python")

    def __init__(self, host: HostRandom | None = None) -> None:
        self._cpu = torch.default_generator.get_state()
        # The states of CUDA generators live on the host: reading them does not synchronise.
        self._cuda = (
            [generator.get_state() for generator in torch.cuda.default_generators]
            if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing()
            else []
        )
        self._python, self._numpy = host.take() if host else (random.getstate(), _numpy_state())

    def restore(self) -> None:
        """Put the states back."""
        torch.default_generator.set_state(self._cpu)
        if self._cuda:
            for generator, state in zip(torch.cuda.default_generators, self._cuda, strict=False):
                generator.set_state(state)
        if self._python is not None:
            random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy.random.get_state() if numpy is not None else None


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    if len(first) == 5:  # NumPy's: the array of the state is at 1.
        return first[2] == second[2] and bool((first[1] == second[1]).all())
    return bool(first == second)


class BufferKeeper:
    """Copies of the buffers that a model's forward writes to (batch norm statistics and such).

    Until `settle` is called it copies every buffer of each module it is shown; afterwards only
    those that were seen to change, told by ``Tensor._version``.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._written: list[weakref.ref[torch.Tensor]] = []
        self._candidates: list[tuple[weakref.ref[torch.Tensor], int]] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._copied: set[int] = set()

    def see(self, root: torch.nn.Module) -> None:
        """Learn a module's buffers before its first forward, and copy them at once."""
        if root in self._known:
            return
        self._known.add(root)
        room = MAX_BUFFER_BYTES
        for buffer in root.buffers():
            room -= buffer.numel() * buffer.element_size()
            if buffer.layout is not torch.strided or room < 0:
                continue
            if id(buffer) not in self._copied:
                self._candidates.append((weakref.ref(buffer), buffer._version))
                self._copy(buffer)

    def take(self) -> None:
        """Copy the buffers known to be written, at the start of a step."""
        self._promote()
        self._copies.clear()
        self._copied.clear()
        if self._written:
            for buffer in [alive for ref in self._written if (alive := ref()) is not None]:
                self._copy(buffer)

    def restore(self) -> None:
        """Put the copies back, versions unchanged."""
        _put(self._copies)

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Run the body with the buffers of the step's start; afterwards they are as now."""
        now = [(buffer, buffer.detach().clone()) for buffer, _ in self._copies]
        self.restore()
        try:
            yield
        finally:
            _put(now)

    def changed_unsaved(self) -> int:
        """Return how many known buffers changed lately and had not been copied."""
        return sum(
            1
            for ref, version in self._candidates
            if (buffer := ref()) is not None
            and buffer._version != version
            and id(buffer) not in self._copied
        )

    def _copy(self, buffer: torch.Tensor) -> None:
        self._copied.add(id(buffer))
        self._copies.append((buffer, buffer.detach().clone()))

    def _promote(self) -> None:
        """Move the candidates that have changed since they were seen to the written ones."""
        if not self._candidates:
            return
        still: list[tuple[weakref.ref[torch.Tensor], int]] = []
        for ref, version in self._candidates:
            buffer = ref()
            if buffer is None:
                continue
            if buffer._version != version:
                self._written.append(ref)
            else:
                still.append((ref, version))
        self._candidates = still


def _put(copies: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with torch.no_grad():
        for buffer, copy in copies:
            with _unsafe_preserve_version_counter((buffer,)):
                buffer.copy_(copy)


class Versions:
    """The version counters of some tensors, to tell later which were written in place."""

    __slots__ = ("_versions",)

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._versions = [
            (weakref.ref(tensor), tensor._version)
            for tensor in tensors
            if not tensor.is_inference()
        ]

    def changed(self) -> int:
        """Return how many of the tensors that still live were written since."""
        return sum(
            1
            for ref, version in self._versions
            if (tensor := ref()) is not None and tensor._version != version
        )
