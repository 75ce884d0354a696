"""Stores the values of chosen tensors: ``capture="tensors"``.

Taps, outputs of Keras layers (``encoder/dense/out``), losses and gradients are stored by name; ops
of traced functions only where a pattern names them (``*MatMul*``). In a traced function they are
read while the call is run op by op, so nothing is added to the program's graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.captured import CapturedValues
from tracelens_tensorflow import layers
from tracelens_tensorflow.marks import marks_of
from tracelens_tensorflow.tensors import RESOURCE, VARIANT

if TYPE_CHECKING:
    from tracelens.session import Session

_OUTPUTS = "_tracelens_layer_outputs"
_STORED_AS = {
    tf.bfloat16: tf.uint16,
    tf.float8_e5m2: tf.uint8,
    tf.float8_e4m3fn: tf.uint8,
} if hasattr(tf, "float8_e5m2") else {tf.bfloat16: tf.uint16}  # fmt: skip
"""Dtypes that numpy lacks, by what their bits are stored through."""

_MARKED = {"tap": "{}", "loss": "{}", "gradient": "{}.grad"}

Places = dict[int, list[tuple[int, str]]]
"""By ``id`` of an op: its outputs to store, by slot, and their names."""


class ValueCapture:
    """Stores values by name.

    Args:
        session: the recording; its config names patterns and budget.
        value_id: tells the id of the value that an eager tensor holds.
    """

    def __init__(self, session: Session, value_id: Callable[[Any], int]) -> None:
        self._values = CapturedValues(session)
        self._value_id = value_id
        self._places: dict[bytes, Places] = {}

    def install(self) -> Callable[[], None]:
        """Begin to look at what layers return; the result, called, ends it."""
        layers.on_output.append(self._layer_returned)

        def uninstall() -> None:
            layers.on_output.remove(self._layer_returned)

        return uninstall

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins; nothing of an inactive one is stored."""
        self._values.step, self._values.active = step, active

    def keep(self, name: str, tensor: Any) -> bool:
        """Store an eager tensor's values under a name if a pattern asks for them; tell whether."""
        values = self._values
        if not values.open or not values.wanted(name):
            return False
        return self._store(name, tensor)

    def places_of(self, function: Any) -> Places:
        """Return which outputs of a function's ops, and of those it calls, are to be stored.

        Args:
            function: an ``AtomicFunction``.
        """
        places = self._places.get(function.name)
        if places is None:
            places = self._places[function.name] = defaultdict(list)
            self._collect(function, places, set())
        return places

    def store(self, places: Iterable[tuple[int, str]], outputs: list[Any]) -> None:
        """Store those outputs of an op that ran which were chosen."""
        if not self._values.open:
            return
        for slot, name in places:
            if slot < len(outputs):
                self._store(name, outputs[slot])

    def _store(self, name: str, tensor: Any) -> bool:
        if tensor._datatype_enum() in (RESOURCE, VARIANT):
            return False
        size_bytes = int(tensor.shape.num_elements() or 0) * max(tensor.dtype.size, 1)
        if not self._values.reserve(name, size_bytes):
            return False
        stored = _STORED_AS.get(tensor.dtype)
        plain = tf.bitcast(tensor, stored) if stored is not None else tensor
        shape = [int(size) for size in tensor.shape]
        data = plain.numpy().tobytes()
        self._values.store(name, self._value_id(tensor), data, tensor.dtype.name, shape)
        return True

    def _layer_returned(self, path: str, result: Any) -> None:
        try:
            found = [t for t in tf.nest.flatten(result) if isinstance(t, tf.Tensor)]
            for slot, tensor in enumerate(found):
                name = f"{path}/out" if len(found) == 1 else f"{path}/out.{slot}"
                if hasattr(tensor, "_numpy"):
                    self.keep(name, tensor)
                else:
                    outputs = getattr(tensor.graph, _OUTPUTS, None)
                    if outputs is None:
                        outputs = []
                        setattr(tensor.graph, _OUTPUTS, outputs)
                    outputs.append((tensor, name))
        except Exception:  # what a layer returns may be anything
            return

    def _collect(self, function: Any, places: Places, seen: set[bytes]) -> None:
        if function.name in seen:
            return
        seen.add(function.name)
        graph = function.graph
        named = list(getattr(graph, _OUTPUTS, ()))
        for tensor, kind, name in marks_of(graph).values():
            if kind in _MARKED:
                named.append((tensor, _MARKED[kind].format(name)))
        taken: set[tuple[int, int]] = set()
        for tensor, name in named:
            if self._values.wanted(name):
                places[id(tensor.op)].append((tensor.value_index, name))
                taken.add((id(tensor.op), tensor.value_index))
        for op in graph.get_operations():
            for slot in range(len(op.outputs)):
                name = op.name if slot == 0 else f"{op.name}:{slot}"
                if self._values.wanted(name, by_name=True) and (id(op), slot) not in taken:
                    places[id(op)].append((slot, name))
        for child in getattr(function, "children", ()):
            self._collect(child, places, seen)
