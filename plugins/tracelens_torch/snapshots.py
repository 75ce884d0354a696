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
        self._used = [False, False]
        self._before: tuple[Any, Any] | None = None

    def take(self) -> tuple[Any, Any]:
        """Return both states, ``None`` for one that the program does not use."""
        if self._left:
            self._left -= 1
            states = (random.getstate(), _numpy_state())
            if self._before is not None:
                used = [not _same(old, new) for old, new in zip(self._before, states, strict=True)]
                self._used = [a or b for a, b in zip(self._used, used, strict=True)]
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


class BufferCopies:
    """Buffers and their values at one moment."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __contains__(self, buffer: torch.Tensor) -> bool:
        return id(buffer) in self._copies

    def add(self, buffer: torch.Tensor) -> None:
        """Copy a buffer, unless it has been copied."""
        if id(buffer) not in self._copies:
            self._copies[id(buffer)] = (buffer, buffer.detach().clone())

    def differs(self, buffer: torch.Tensor) -> bool:
        """Return whether a buffer was copied and holds something else now."""
        kept = self._copies.get(id(buffer))
        return kept is not None and not torch.equal(kept[1], buffer)

    def restore(self) -> None:
        """Put the values back; version counters stay."""
        with torch.no_grad():
            for buffer, copy in self._copies.values():
                with _unsafe_preserve_version_counter((buffer,)):
                    buffer.copy_(copy)

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Run the body with the values of that moment; afterwards they are as now."""
        now = BufferCopies()
        for buffer, _ in self._copies.values():
            now.add(buffer)
        self.restore()
        try:
            yield
        finally:
            now.restore()


class BufferKeeper:
    """Copies the buffers that a model's forward writes to (batch norm statistics and such).

    A buffer is copied until it is known, after one step, whether the model writes to it: then
    its version or its value has changed. Those of batch norms are always copied.

    Attributes:
        copies: those of the running step.
    """

    def __init__(self) -> None:
        self.copies = BufferCopies()
        self._known: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._written: list[weakref.ref[torch.Tensor]] = []
        self._candidates: list[tuple[weakref.ref[torch.Tensor], int]] = []

    def see(self, root: torch.nn.Module) -> None:
        """Learn a root module's buffers before its first forward, and copy them at once."""
        if root in self._known:
            return
        self._known.add(root)
        room = MAX_BUFFER_BYTES
        for module in root.modules():
            for buffer in module.buffers(recurse=False):
                room -= buffer.numel() * buffer.element_size()
                if buffer.layout is not torch.strided or room < 0:
                    continue
                self.copies.add(buffer)
                # Batch norm's kernels write the running statistics without a version bump.
                if isinstance(module, torch.nn.modules.batchnorm._NormBase):
                    self._written.append(weakref.ref(buffer))
                else:
                    self._candidates.append((weakref.ref(buffer), buffer._version))

    def take(self) -> None:
        """A step begins: copy the buffers known to be written."""
        if self._candidates:
            self._promote()
        self.copies = BufferCopies()
        for reference in self._written:
            buffer = reference()
            if buffer is not None:
                self.copies.add(buffer)

    def changed_uncopied(self, copies: BufferCopies) -> int:
        """Return how many known buffers changed since they were learned, and are not copied."""
        return sum(
            1
            for reference, version in self._candidates
            if (buffer := reference()) is not None
            and buffer._version != version
            and buffer not in copies
        )

    def _promote(self) -> None:
        """Move the candidates that have changed since they were seen to the written ones."""
        still: list[tuple[weakref.ref[torch.Tensor], int]] = []
        for reference, version in self._candidates:
            buffer = reference()
            if buffer is None:
                continue
            if buffer._version != version or self.copies.differs(buffer):
                self._written.append(reference)
            else:
                still.append((reference, version))
        self._candidates = still


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
