"""Records a replay: every op once or a few times, everything that goes bad, nothing without end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.events import NO_ID
from tracelens_tensorflow import optables, tensors
from tracelens_tensorflow.fusion import CLIPS, remarks

if TYPE_CHECKING:
    from tracelens_tensorflow.recording import Recorder

MAX_FINITE = 2
"""Runs of one op (in a loop) that are recorded while its outputs are finite."""

MAX_BAD = 4
"""Runs of one op that are recorded while it hands on what was bad already."""

MAX_ORIGINS = 64
"""Runs of one op that are recorded while it makes something bad of finite inputs."""

MAX_OPS = 12_000
"""Ops of a replay: with all their tensors measured they fill most of a flight ring of 131,072
records, and what is recorded after them would overwrite the first cause."""

MAX_REMARKS = 4
"""Fused kernels that are told: each takes a sentence of the report."""


class Tracer:
    """Listens to an interpreter and writes what a first cause is found in.

    A loop that goes on with NaN after NaN would push the op that made the first one out of the
    ring. So of each op a few runs are recorded; after that what it hands on keeps the id of the
    bad input, as a view does, and only ops that make something bad of finite inputs are written.

    Args:
        recorder: writes the ops.
        wanted: graph tensors whose values are to be told, by ``id``.

    Attributes:
        values: by ``id`` of a wanted graph tensor: its eager tensor, the first bad one of a loop.
        value_ids: likewise its value id.
        n_ops: ops that ran.
        remarks: where the first run, in fused kernels, did not see what this one sees.
    """

    def __init__(self, recorder: Recorder, wanted: Mapping[int, Any]) -> None:
        self.values: dict[int, Any] = {}
        self.value_ids: dict[int, int] = {}
        self.n_ops = 0
        self.remarks: list[str] = []
        self._recorder = recorder
        self._wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key, tensor in wanted.items():
            self._wanted[id(tensor.op)].append((tensor.value_index, key))
        self._bad: set[int] = set()
        self._runs: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._recorded = 0
        self._told: set[int] = set()

    def begin(self, graph: Any, args: Sequence[Any]) -> None:
        """The graph is about to run.

        Args:
            graph: the graph.
            args: its arguments; those that no recorded op wrote are the step's input.
        """
        self._recorder.register_data([arg for arg in args if self._recorder.value_id(arg) < 0])
        for placeholder, arg in zip(graph.inputs, args, strict=False):
            if tensors.is_bad(arg):
                self._bad.add(arg._id)
            for _, key in self._wanted.get(id(placeholder.op), ()):
                self._note(key, arg, arg._id in self._bad)

    def on_op(self, op: tf.Operation, inputs: list[Any], outputs: list[Any]) -> None:
        """Record an op that ran."""
        self.n_ops += 1
        recorder = self._recorder
        writes = bool(inputs) and optables.writes(op)
        seen = outputs or (inputs[:1] if writes else outputs)
        bad = [tensor for tensor in seen if tensors.is_bad(tensor)]
        read = recorder.lists.read_by(op.type, inputs) or inputs
        source = next((tensor for tensor in read if tensor._id in self._bad), None)
        for tensor in bad:
            self._bad.add(tensor._id)
        if writes and not bad:
            self._bad.discard(inputs[0]._id)
        if recorder.handled(op.type, inputs, outputs):
            pass
        elif self._worth(id(op), bool(bad), source is not None):
            self._recorded += 1
            recorder.graph_op(op, inputs, outputs, bad=bool(bad))
        else:
            recorder.pass_on(inputs, outputs, source if bad else None)
        if bad and op.type in CLIPS:
            self._remark(remarks(op.graph, op))
        for place, key in self._wanted.get(id(op), ()):
            if place < len(outputs):
                self._note(key, outputs[place], outputs[place]._id in self._bad)

    def _remark(self, text: str | None) -> None:
        if text is not None and text not in self.remarks and len(self.remarks) < MAX_REMARKS:
            self.remarks.append(text)

    def _worth(self, key: int, bad: bool, handed_on: bool) -> bool:
        counts = self._runs[key]
        kind = 0 if not bad else 1 if handed_on else 2
        counts[kind] += 1
        if kind == 2:
            return counts[2] <= MAX_ORIGINS
        return counts[kind] <= (MAX_BAD if bad else MAX_FINITE) and self._recorded < MAX_OPS

    def _note(self, key: int, tensor: Any, bad: bool) -> None:
        if key in self._told:
            return
        self.values[key] = tensor
        self.value_ids[key] = self._recorder.value_id(tensor)
        if bad:
            self._told.add(key)

    def bad(self, key: int) -> bool:
        """Tell whether a wanted graph tensor was non-finite at any time."""
        return key in self._told

    def value_id(self, tensor: Any) -> int:
        """Return the value id of an eager tensor of the run, -1 if unknown."""
        return self._recorder.value_id(tensor) if tensor is not None else NO_ID
