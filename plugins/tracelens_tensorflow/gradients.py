"""Which forward op an eager backward op belongs to.

A tape hands a gradient function the inputs and outputs of the forward op, as far as the function
needs them. By them the op is found; where it needs neither, the last op of its type whose output
has the shape of the incoming gradient is taken.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from tensorflow.python.eager import imperative_grad
from tensorflow.python.framework import ops

from tracelens.events import NO_ID, SLOT_BITS
from tracelens_tensorflow.gradlinks import Gradient, current_gradient

_MAX_OPS = 1 << 16
_MAX_SHAPES = 1 << 12


class Running(threading.local):
    """What goes on in the calling thread."""

    def __init__(self) -> None:
        self.depth = 0
        self.gradient: Gradient | None = None
        self.forward = NO_ID
        self.used: dict[Any, int] = {}


class ForwardOps:
    """Finds the forward op of a gradient function that a tape calls.

    Args:
        value_id: returns the id of the value that an eager tensor holds.
    """

    def __init__(self, value_id: Callable[[Any], int]) -> None:
        self.running = Running()
        self._value_id = value_id
        self._library: dict[Any, bool] = {}
        self._by_inputs: OrderedDict[Any, int] = OrderedDict()
        self._by_shape: defaultdict[Any, deque[int]] = defaultdict(lambda: deque(maxlen=256))

    def remember(
        self, kind: str, op_id: int, inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> None:
        """An op ran while a tape records."""
        key = (kind, *[tensor._id for tensor in inputs])
        if len(self._by_inputs) >= _MAX_OPS:
            self._by_inputs.popitem(last=False)
        self._by_inputs[key] = op_id
        if len(self._by_shape) > _MAX_SHAPES:
            self._by_shape.clear()
        if outputs:
            self._by_shape[kind, outputs[0]._shape_tuple()].append(op_id)

    def install(self) -> Callable[[], None]:
        """Begin to notice tapes at work; the result, called, ends it."""
        walk, running = imperative_grad.imperative_grad, self.running

        def walk_tape(*args: Any, **kwargs: Any) -> Any:
            before = running.used
            running.used = {}
            running.depth += 1
            try:
                return walk(*args, **kwargs)
            finally:
                running.depth -= 1
                running.used = before

        imperative_grad.imperative_grad = walk_tape

        def uninstall() -> None:
            if imperative_grad.imperative_grad is walk_tape:
                imperative_grad.imperative_grad = walk

        return uninstall

    def current(self, read: Sequence[Any]) -> int:
        """Return the forward op whose gradient is being computed, -1 if it is not known.

        Args:
            read: the inputs of the backward op that asks.
        """
        gradient = current_gradient()
        running = self.running
        if gradient is None:
            return NO_ID
        if gradient is not running.gradient:
            running.gradient = gradient
            running.forward = self._find(gradient, read)
        return running.forward

    def in_library(self) -> bool:
        """Tell whether the gradient function that runs is TensorFlow's own."""
        gradient = self.running.gradient
        if gradient is None:
            return False
        known = self._library.get(gradient.op_type)
        if known is None:
            try:
                function = ops._gradient_registry.lookup(gradient.op_type)
                known = str(function.__module__).startswith("tensorflow.")
            except (AttributeError, LookupError):
                known = False
            self._library[gradient.op_type] = known
        return known

    def _find(self, gradient: Gradient, read: Sequence[Any]) -> int:
        kind = gradient.op_type
        kind = kind if isinstance(kind, str) else kind.decode()
        for tensor in gradient.outputs:
            value_id = self._value_id(tensor) if hasattr(tensor, "_numpy") else NO_ID
            if value_id >= 0:
                return value_id >> SLOT_BITS
        if gradient.inputs:
            found = self._by_ids(kind, [getattr(tensor, "_id", 0) for tensor in gradient.inputs])
            if found >= 0:
                return found
        if not read:
            return NO_ID
        # A tape walks back, so the n-th asked for is the n-th last that ran.
        key = (kind, read[0]._shape_tuple())
        same, used = self._by_shape.get(key, ()), self.running.used.get(key, 0)
        self.running.used[key] = used + 1
        return same[-1 - used] if used < len(same) else NO_ID

    def _by_ids(self, kind: str, ids: list[int]) -> int:
        found = self._by_inputs.get((kind, *ids))
        if found is not None:
            return found
        # What the program gave as a Python number or an array is a tensor only for the tape.
        for place in range(len(ids)):
            found = self._by_inputs.get((kind, *ids[:place], 0, *ids[place + 1 :]))
            if found is not None:
                return found
        return NO_ID
