"""Writes TensorFlow ops as records: value ids of eager tensors and variables, flags, phases.

An eager tensor is known by its ``_id``, which is never used again. Ops that hand a value on
unchanged (``Identity``, ``Reshape``, reading a variable) hand its id on; writing a variable gives
it the id of the op that wrote it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.events import NO_ID, OpFlag, Phase
from tracelens.oprecords import OpRun, OpWriter, thread_id, value_of
from tracelens_tensorflow import facts, optables, tensors
from tracelens_tensorflow.lists import MAX_ITEMS, Lists
from tracelens_tensorflow.tensors import RESOURCE, VARIANT, TensorFlowTensors

if TYPE_CHECKING:
    from tracelens.session import Session

VIEWS = frozenset(
    "Identity IdentityN Snapshot StopGradient PreventGradient Reshape ExpandDims Squeeze "
    "EnsureShape ReadVariableOp PlaceholderWithDefault CheckNumerics CheckNumericsV2".split()
)
"""Ops whose outputs are their inputs, one for one: they write nothing."""

FILLS = frozenset("Const Fill".split())
GARBAGE = frozenset(("Empty",))
DATA = frozenset(
    "IteratorGetNext IteratorGetNextSync IteratorGetNextAsOptional OptionalGetValue".split()
)

MAX_VALUES = 1 << 18
"""Tensors whose value ids are remembered (some 30 MB); the oldest are forgotten first."""

MAX_INSTANCES = 4096
"""Runs of one forward op that backward ops can be tied to."""

_BATCH = "step_input"


class Recorder:
    """Gives values their ids and writes ops into the session's ring.

    Args:
        session: the recording.

    Attributes:
        lists: what lists of tensors hold.
        full: measure every output and write layouts, not only of what is bad.
        flags: ``OpFlag`` bits that every op gets (``REPLAYED``).
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tensors = TensorFlowTensors()
        self._writer = OpWriter(session.writer, self._tensors)
        self._values: dict[int, int] = {}
        self._handles: dict[int, int] = {}
        self._variables: dict[int, int] = {}
        self.lists = Lists()
        self._instances: dict[int, list[int]] = defaultdict(list)
        self._backward: dict[int, int] = defaultdict(int)
        self._sites: dict[str, int] = {}
        self.full = session.config.capture != "guard"
        self.flags = 0

    # Values

    def value_id(self, tensor: Any) -> int:
        """Return the id of the value an eager tensor (or the variable of a handle) holds.

        Returns:
            -1 if no recorded op wrote it.
        """
        key = tensor._id
        if tensor._datatype_enum() == RESOURCE:
            return self._variables.get(self._handles.get(key, key), NO_ID)
        return self._values.get(key, NO_ID)

    def adopt(self, tensor: Any, value_id: int) -> None:
        """Let a tensor, or the variable of a handle, hold a value that is already known."""
        key = tensor._id
        if tensor._datatype_enum() == RESOURCE:
            self._variables[self._handles.get(key, key)] = value_id
            return
        if len(self._values) >= MAX_VALUES:
            for old in list(self._values)[: MAX_VALUES // 2]:
                del self._values[old]
            self._tensors.parameters.clear()
        self._values[key] = value_id

    def register_parameters(self, handles: Iterable[Any]) -> None:
        """Take note of the handles of trainable variables."""
        self._tensors.parameters.update(handle._id for handle in handles)

    def register_data(self, batch: Sequence[Any], name: str = _BATCH) -> int:
        """Write an op of phase ``data`` whose outputs are the tensors.

        Args:
            batch: eager tensors; those without floats are left out.
            name: ``"step_input"``, or the op that hands over a batch.

        Returns:
            The op's id, -1 if no tensor holds floats.
        """
        floats = [tensor for tensor in batch if tensors.is_float(tensor)]
        if not floats:
            return NO_ID
        return self.op(name, self._named_site(name), Phase.DATA, (), floats)

    @contextmanager
    def from_before(self) -> Iterator[None]:
        """What is recorded inside begins with variables that nothing recorded has written."""
        variables = dict(self._variables)
        self._variables.clear()
        self.forget_runs()
        try:
            yield
        finally:
            self._variables = variables

    def forget_runs(self) -> None:
        """Forget which op of a graph ran as which op: a run of a graph begins."""
        self._instances.clear()
        self._backward.clear()

    # Ops

    def graph_op(
        self,
        op: tf.Operation,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        bad: bool | None = None,
        start_ns: int = 0,
        duration_ns: int = -1,
    ) -> int:
        """Write an op of a graph that ran.

        Args:
            op: the graph's op.
            inputs: its eager inputs.
            outputs: its eager outputs.
            bad: whether an output is non-finite, if the caller knows.
            start_ns: since the trace's epoch, 0 for now.
            duration_ns: -1 if not measured.

        Returns:
            The op's id; -1 if nothing had to be written.
        """
        kind = op.type
        if self.handled(kind, inputs, outputs):
            return NO_ID
        if kind in VIEWS and not self.full:
            self._hand_on(inputs, outputs)
            return NO_ID
        if kind == "Const" and not (outputs and tensors.is_bad(outputs[0])):
            return NO_ID
        known = facts.facts_of(op)
        phase = Phase.DATA if kind in DATA else known.phase
        harmless = kind.startswith("TensorList") or not optables.can_create(op)
        flags = known.flags | (OpFlag.HARMLESS if harmless else 0)
        op_id = self.op(
            kind, facts.site_of(op, self._session.writer), phase, inputs, outputs, flags=flags,
            fwd_op_id=self._forward_id(op, known.forward), bad=bad, start_ns=start_ns,
            duration_ns=duration_ns,
        )  # fmt: skip
        runs = self._instances[id(op)]
        if op_id >= 0 and len(runs) < MAX_INSTANCES:
            runs.append(op_id)
        return op_id

    def op(
        self,
        kind: str,
        site: int,
        phase: int,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        flags: int = 0,
        fwd_op_id: int = NO_ID,
        bad: bool | None = None,
        start_ns: int = 0,
        duration_ns: int = -1,
    ) -> int:
        """Write an op that ran eagerly.

        Args:
            kind: the op's type, ``"MatMul"``.
            site: interned site.
            phase: ``Phase`` code.
            inputs: its eager inputs.
            outputs: its eager outputs.
            flags: further ``OpFlag`` bits.
            fwd_op_id: of a backward op, its forward op.
            bad: whether an output is non-finite, if the caller knows.
            start_ns: since the trace's epoch, 0 for now.
            duration_ns: -1 if not measured.

        Returns:
            The op's id.
        """
        handles = [tensor for tensor in inputs if tensor._datatype_enum() == RESOURCE]
        items = self.lists.read_by(kind, inputs)
        if items:
            inputs = (*_bad_first(items), *inputs[1:])
        if kind in VIEWS:
            flags |= OpFlag.VIEW
            self._hand_on(inputs, outputs)
        written = _written(kind, handles) if handles else []
        if written:
            flags |= OpFlag.INPLACE
            outputs = (*written, *outputs)
        if bad is None:
            bad = any(map(tensors.is_bad, outputs))
        flags |= _flags_of(kind, bad, outputs)
        op_id = int(self._session.writer.reserve_op_id())
        before = [(tensor, self.value_id(tensor)) for tensor in inputs if _holds(tensor)]
        if not flags & OpFlag.VIEW:
            for slot, tensor in enumerate(outputs):
                self.adopt(tensor, value_of(op_id, slot))
        after = [(tensor, self.value_id(tensor)) for tensor in outputs]
        self._writer.step = self._session.current_step
        self._writer.extra_flags = self.flags
        run = OpRun(
            op_id, int(flags), int(phase), site, fwd_op_id, start_ns or self._writer.now_ns(),
            duration_ns, thread_id(), before, after,
        )  # fmt: skip
        self._writer.op(run, full=self.full)
        return op_id

    def handled(self, kind: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
        """Follow an op that only puts tensors into lists or takes them out; tell if it does."""
        taken = self.lists.follow(kind, inputs, outputs)
        if taken is False:
            return False
        if taken is not True:
            self._hand_on((taken,), outputs[-1:])
        return True

    def pass_on(self, inputs: Sequence[Any], outputs: Sequence[Any], source: Any | None) -> None:
        """Let an op's outputs stand for one of its inputs, without a record of the op.

        Args:
            inputs: the op's inputs.
            outputs: its outputs.
            source: the input whose value the outputs go on from, ``None`` to know nothing.
        """
        value_id = self.value_id(source) if source is not None else NO_ID
        handles = [tensor for tensor in inputs if tensor._datatype_enum() == RESOURCE]
        for tensor in (*outputs, *(handles if not outputs else ())):
            self.adopt(tensor, value_id)

    def _hand_on(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        parameters = self._tensors.parameters
        for source, target in zip(inputs, outputs, strict=False):
            if target._datatype_enum() == RESOURCE:
                self._handles[target._id] = self._handles.get(source._id, source._id)
                target._handle_data = getattr(source, "_handle_data", None)
            else:
                value_id = self.value_id(source)
                if value_id >= 0:
                    self.adopt(target, value_id)
            if source._id in parameters:
                parameters.add(target._id)

    def _forward_id(self, op: tf.Operation, forward: tf.Operation | None) -> int:
        """Return the run of its forward op that a backward op belongs to.

        A loop's backward runs its iterations in the opposite order.
        """
        if forward is None:
            return NO_ID
        runs = self._instances.get(id(forward))
        if not runs:
            return NO_ID
        nth = self._backward[id(op)]
        self._backward[id(op)] += 1
        return runs[-1 - nth % len(runs)]

    def _named_site(self, name: str) -> int:
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = int(self._session.writer.intern("site", {"op": name}))
        return site


def _holds(tensor: Any) -> bool:
    """Tell whether a tensor is worth naming as an input: not a handle of a table or iterator."""
    return tensor._datatype_enum() != RESOURCE or tensors.variable_dtype(tensor) != 0


def _bad_first(items: list[Any]) -> list[Any]:
    if len(items) > MAX_ITEMS:
        items = sorted(items, key=lambda item: not tensors.is_bad(item))
    return items[:MAX_ITEMS]


def _written(kind: str, handles: list[Any]) -> list[Any]:
    """Return the handles of the variables that an op writes."""
    if kind.startswith(optables.APPLIES):
        return [handle for handle in handles if tensors.variable_dtype(handle)]
    return handles[:1] if kind in optables.WRITES else []


def _flags_of(kind: str, bad: bool, outputs: Sequence[Any]) -> int:
    flags = int(OpFlag.HIT) if bad else 0
    # What a list of tensors holds cannot be seen from outside.
    if bad or not any(tensor._datatype_enum() == VARIANT for tensor in outputs):
        flags |= OpFlag.CHECKED
    if kind in GARBAGE:
        flags |= OpFlag.GARBAGE
    if bad and kind in FILLS:
        flags |= OpFlag.CONSTANT
    return flags
