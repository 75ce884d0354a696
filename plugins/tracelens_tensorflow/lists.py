"""Knows what lists of tensors hold, so that a value is followed through them.

Loops keep what their gradients need, and ``TensorArray`` and ``map_fn`` their elements, in lists
that are variants: nothing in them can be seen from outside. What is put into a list and taken out
again is the same value, so putting and taking are no ops to a reader of the trace.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from tracelens_tensorflow.tensors import VARIANT

Items = list[Any]
"""Eager tensors; ``None`` where nothing was put in."""

MAX_ITEMS = 64
"""Elements of a list that an op is said to have read; bad ones are named first."""

_MAX_LENGTH = 1 << 16
_PASS_ON = frozenset("Identity IdentityN StopGradient".split())


class Lists:
    """What each living list holds."""

    def __init__(self) -> None:
        self._held: dict[int, Items] = {}

    def of(self, tensor: Any) -> Items | None:
        """Return what a list holds, ``None`` if that is unknown."""
        return self._held.get(tensor._id)

    def follow(self, kind: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any | bool:
        """Take note of what an op did to a list.

        Args:
            kind: the op's type.
            inputs: its eager inputs.
            outputs: its eager outputs.

        Returns:
            True for an op that only handled a list; the tensor that was taken out of one; False
            for any other op.
        """
        if kind.startswith("TensorList") or kind == "EmptyTensorList":
            return self._list_op(kind.removeprefix("TensorList"), inputs, outputs)
        if kind in _PASS_ON:
            for source, target in zip(inputs, outputs, strict=False):
                if target._datatype_enum() == VARIANT:
                    self._keep(target, self.of(source))
        return False

    def read_by(self, kind: str, inputs: Sequence[Any]) -> list[Any]:
        """Return the tensors that an op reads out of its first input, a list."""
        if not kind.startswith("TensorList") or not inputs:
            return []
        items = self.of(inputs[0])
        seen = {item._id: item for item in items or () if item is not None}
        return list(seen.values())

    def _list_op(self, verb: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any | bool:
        if verb == "EmptyTensorList":
            self._keep(outputs[0], [])
            return True
        if verb == "Reserve":
            self._keep(outputs[0], [None] * min(_number(inputs[1]), _MAX_LENGTH))
            return True
        if verb == "FromTensor":
            length = (inputs[0]._shape_tuple() or (0,))[0]
            self._keep(outputs[0], [inputs[0]] * min(length, _MAX_LENGTH))
            return True
        items = self.of(inputs[0]) if inputs else None
        if items is None:
            return False
        if verb == "PushBack":
            self._keep(outputs[0], [*items, inputs[1]] if len(items) < _MAX_LENGTH else None)
            return True
        if verb == "PopBack":
            self._keep(outputs[0], items[:-1])
            return _taken(items, len(items) - 1)
        if verb == "GetItem":
            return _taken(items, _number(inputs[1]))
        if verb == "SetItem":
            place = _number(inputs[1])
            grown = items + [None] * max(0, min(place, _MAX_LENGTH) + 1 - len(items))
            if 0 <= place < len(grown):
                grown[place] = inputs[2]
            self._keep(outputs[0], grown)
            return True
        if verb == "Resize":
            length = min(_number(inputs[1]), _MAX_LENGTH)
            self._keep(outputs[0], items[:length] + [None] * (length - len(items)))
            return True
        return verb in ("Length", "ElementShape")

    def _keep(self, tensor: Any, items: Items | None) -> None:
        if items is None:
            return
        key = tensor._id
        self._held[key] = items
        weakref.finalize(tensor, self._held.pop, key, None).atexit = False


def _taken(items: Items, place: int) -> Any | bool:
    item = items[place] if 0 <= place < len(items) else None
    return True if item is None else item


def _number(tensor: Any) -> int:
    return int(tensor._numpy())
