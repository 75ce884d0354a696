"""The calls of root modules since the last update: what a loop without a decorator replays.

``torch.nn.Module.__call__`` is wrapped while the sentinel runs. A call that no other module's
call encloses is a root's: its arguments are kept by reference, and so are the gradients of its
outputs once backward has made them. Nothing is registered on the modules themselves, so they
copy, pickle and compile as ever (global module hooks would make `torch.compile` warn).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from tracelens_torch import guards, rerun
from tracelens_torch.batches import tensors_in
from tracelens_torch.snapshots import BufferKeeper, HostRandom, RngState, Versions

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CALLS = 16
"""Root calls kept between two updates (micro-batches of gradient accumulation)."""

_is_compiling = torch.compiler.is_dynamo_compiling


class RootCall:
    """One call of a root module, with what is needed to run it again.

    Attributes:
        module: the root.
        args: its positional arguments, by reference.
        kwargs: its keyword arguments, by reference.
        rng: the random states when it was called.
        autocast: autocast's state when it was called.
        versions: version counters of the tensors among its arguments.
        gradients: the gradient of each output tensor by its place; several if backward ran
            through the output several times.
    """

    __slots__ = (
        "__weakref__", "args", "autocast", "gradients", "kwargs", "module", "rng", "versions",
    )  # fmt: skip

    def __init__(self, module: torch.nn.Module, args: Any, kwargs: Any, host: HostRandom) -> None:
        self.module = module
        self.args = args
        self.kwargs = kwargs
        self.rng = RngState(host)
        self.autocast = guards.autocast_state()
        self.versions = Versions(tensors_in((args, kwargs)))
        self.gradients: dict[int, list[torch.Tensor]] = {}

    def watch(self, outputs: Any) -> None:
        """Keep the gradients that backward will bring to the outputs."""
        mine = weakref.ref(self)
        for place, tensor in enumerate(tensors_in(outputs)):
            if tensor.requires_grad:
                tensor.register_hook(_gradient_keeper(mine, place))


def _gradient_keeper(call: weakref.ref[RootCall], place: int) -> Callable[[torch.Tensor], None]:
    def keep(gradient: torch.Tensor) -> None:
        alive = call()
        if alive is not None:
            alive.gradients.setdefault(place, []).append(gradient.detach())

    return keep


def _under_other_mode() -> bool:
    """Tell whether a dispatch mode runs that is not ours: tracing, or one of the user's."""
    return any(
        not type(torch._C._get_dispatch_stack_at(place)).__module__.startswith("tracelens_torch.")
        for place in range(torch._C._len_torch_dispatch_stack())
    )


class RootCalls:
    """Watches the calls of root modules.

    Args:
        buffers: shown each root before its call.
        host: shared view of Python's and NumPy's generators.

    Attributes:
        keep: whether calls are kept for a replay; roots are always told to ``buffers``.
        calls: the calls since the last update, oldest first; replaced, not emptied, then.
        dropped: how many calls since then were too many to keep.
    """

    def __init__(self, buffers: BufferKeeper, host: HostRandom) -> None:
        self.keep = True
        self.calls: deque[RootCall]
        self.forget()
        self.roots: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self.paused = False
        self._buffers = buffers
        self._host = host
        self._depth = threading.local()
        self._original: Any = None

    def install(self) -> None:
        """Wrap ``Module.__call__``."""
        original = torch.nn.Module.__call__
        local = self._depth
        watch = self

        def __call__(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if _is_compiling() or getattr(local, "inside", False):
                return original(module, *args, **kwargs)
            local.inside = True
            try:
                return watch._root(original, module, args, kwargs)
            finally:
                local.inside = False

        self._original = original
        self._wrapper = __call__
        torch.nn.Module.__call__ = __call__  # type: ignore[method-assign]

    def remove(self) -> None:
        """Unwrap ``Module.__call__`` if nobody wrapped it since; pass through if so."""
        self.forget()
        self.paused = True
        if self._original is not None and torch.nn.Module.__call__ is self._wrapper:
            torch.nn.Module.__call__ = self._original
        self._original = None

    def forget(self) -> None:
        """Begin anew: an update was made from the kept calls."""
        self.calls = deque(maxlen=MAX_CALLS)
        self.dropped = 0

    def _root(self, original: Any, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if (
            self.paused
            or not torch.is_grad_enabled()
            or rerun.active() is not None
            or _under_other_mode()
            or torch._C._current_autograd_node() is not None  # recomputed by a checkpoint
        ):
            return original(module, *args, **kwargs)
        self.roots.add(module)
        if self.keep and not self.calls:
            self._buffers.take()
        self._buffers.see(module)
        if not self.keep:
            return original(module, *args, **kwargs)
        call = RootCall(module, args, kwargs, self._host)
        outputs = original(module, *args, **kwargs)
        if len(self.calls) == self.calls.maxlen:
            self.dropped += 1
        self.calls.append(call)
        call.watch(outputs)
        return outputs
