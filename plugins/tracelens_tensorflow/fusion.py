"""Where TensorFlow fuses ops into one kernel that turns NaN into 0, which the single ops keep.

On the CPU the graph optimizer joins ``MatMul`` or a convolution with the ``BiasAdd`` (or ``Add``,
or batch normalization) and the ``Relu`` after it. The fused kernel clips with a maximum that drops
NaN. Run eagerly, op by op, or with any further reader of a value in between, the NaN stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracelens_tensorflow import facts, fdef
from tracelens_tensorflow.plans import graphs_of

if TYPE_CHECKING:
    import tensorflow as tf

    from tracelens.session import Session
    from tracelens_tensorflow.calls import Call

_PRODUCTS = frozenset(("MatMul", "Conv2D", "DepthwiseConv2dNative"))
_BETWEEN = frozenset(("BiasAdd", "Add", "AddV2", "FusedBatchNorm", "FusedBatchNormV2",
                      "FusedBatchNormV3"))  # fmt: skip
CLIPS = frozenset(("Relu", "Relu6"))
"""Measured: the fused kernels of these drop NaN; those of Elu, LeakyRelu, Tanh keep it."""

_LONGEST = 4
"""Ops of a pattern: product, batch normalization or bias, residual sum, clip."""

_MAX_FUNCTIONS = 32
"""Functions that are told of."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Ops that become one kernel, from the product to the clip."""

    ops: tuple[tf.Operation, ...]

    @property
    def inner(self) -> tuple[tf.Tensor, ...]:
        """The tensors that exist no more once the ops are one kernel."""
        return tuple(tensor for op in self.ops[:-1] for tensor in op.outputs)

    @property
    def output(self) -> tf.Tensor:
        """What the kernel writes."""
        return self.ops[-1].outputs[0]


def patterns(ops: Iterable[tf.Operation]) -> Iterator[Pattern]:
    """Yield the patterns among the ops of a graph."""
    for op in ops:
        if op.type in CLIPS:
            found = _pattern(op)
            if found is not None:
                yield found


def hidden_by_fusion(ops: Iterable[tf.Operation]) -> dict[int, tf.Tensor]:
    """Return the tensors that must get no further reader, which would undo the fusion.

    Args:
        ops: of a graph.

    Returns:
        By ``id`` of a tensor inside a pattern: the pattern's output, to be looked at instead.
    """
    return {id(t): pattern.output for pattern in patterns(ops) for t in pattern.inner}


def remarks(graph: Any, op: tf.Operation) -> str | None:
    """Return what to say of a NaN at an op, if fusion hides it from the program.

    Args:
        graph: the graph of the op.
        op: an op of which a replay, op by op, gave a NaN.
    """
    for pattern in _around(op):
        return (
            f"in the graph TensorFlow fuses {_words(pattern)} into one kernel, which turns NaN "
            f"into 0; run op by op, or eagerly, the NaN stays: the program computed 0 where the "
            f"replay shows NaN"
        )
    return None


class Opened:
    """Says, once for each function, that recording every op keeps apart what TensorFlow fuses.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told: set[bytes] = set()

    def tell(self, call: Call) -> None:
        """Look at a function that was run op by op, or with every output probed. Never raises."""
        name = call.function.name
        if name in self._told or len(self._told) >= _MAX_FUNCTIONS:
            return
        self._told.add(name)
        try:
            self._tell(call)
        except Exception as error:
            self._session.note("hook_failed", f"fused kernels were not looked up: {error!r}")

    def _tell(self, call: Call) -> None:
        # XLA makes kernels of its own, which keep NaN.
        if fdef.is_true(call.function.cached_definition.attr, "_XlaMustCompile"):
            return
        found = [
            pattern
            for graph in graphs_of(call.graph)
            for pattern in patterns(graph.get_operations())
        ]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            self._session.note(
                "fusion",
                f"{call.name}: recording every op keeps apart what TensorFlow fuses "
                f"({_words(found[0])}{more}): a NaN there stays NaN, where the program alone "
                f"computes 0",
            )


def _words(pattern: Pattern) -> str:
    source = facts.facts_of(pattern.ops[-1]).source
    place = f" at line {source.line}" if source is not None else ""
    return " + ".join(each.type for each in pattern.ops) + place


def _around(op: Any) -> Iterator[Pattern]:
    """Yield the pattern that an op is part of."""
    at = op
    for _ in range(_LONGEST):
        if at.type in CLIPS:
            found = _pattern(at)
            if found is not None and any(each is op for each in found.ops):
                yield found
            return
        readers = _readers(at)
        if at.type not in _PRODUCTS | _BETWEEN or len(readers) != 1:
            return
        at = readers[0]


def _pattern(clip: Any) -> Pattern | None:
    chain = [clip]
    while len(chain) < _LONGEST:
        inner = [
            tensor.op
            for tensor in chain[-1].inputs
            if tensor.op.type in _PRODUCTS | _BETWEEN and _is_private(tensor)
        ]
        if not inner:
            return None
        # A residual sum has two candidates; the product or what follows it comes first.
        op = next((each for each in inner if each.type in _PRODUCTS), inner[0])
        chain.append(op)
        if op.type in _PRODUCTS:
            return Pattern(tuple(reversed(chain)))
    return None


def _is_private(tensor: Any) -> bool:
    """Tell whether one op alone reads a tensor, and the caller of the graph does not."""
    outputs = getattr(tensor.graph, "outputs", ())
    if len(_readers(tensor.op)) != 1 or any(tensor is output for output in outputs):
        return False
    op = tensor.op
    return not op.type.startswith("FusedBatchNorm") or not op.get_attr("is_training")


def _readers(op: Any) -> list[Any]:
    return [reader for output in op.outputs for reader in output.consumers()]
