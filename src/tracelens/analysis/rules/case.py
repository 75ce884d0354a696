"""What a rule sees, what it answers, and the words to say it in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracelens.analysis.dtypes import FloatLimits, limits
from tracelens.analysis.names import canonical, display, forward_name
from tracelens.analysis.rules.vocabulary import Vocabulary
from tracelens.analysis.state import Bad
from tracelens.events import Op, Phase, Source, TensorRecord


@dataclass(frozen=True, slots=True)
class Advice:
    """A rule's answer.

    Attributes:
        rule: its short name (``"exp-overflow"``).
        why: one or two sentences with the measured numbers.
        fix: what to write instead.
    """

    rule: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True)
class Case:
    """A cause to be explained.

    Attributes:
        op: the op that is blamed.
        kind: NaN or Inf, as made there.
        forward: the forward op of a backward op, if recorded.
        nan_op: the op that made a NaN of the blamed Inf, if that is what happened.
        origin: as in ``walk.Cause``.
        tensor: the tensor that came in bad, if one did.
        frame: the source line that is shown.
        hidden_by: the forward op that hid the value, if one did.
        sink: the sink event.
        losses: ``(step, loss)`` of earlier steps, oldest first.
        made_by: canonical names of the ops that wrote the inputs, empty where unknown.
        words: the framework's words for what to write instead.
    """

    op: Op
    kind: Bad
    forward: Op | None = None
    nan_op: Op | None = None
    origin: str = "op"
    tensor: TensorRecord | None = None
    frame: Source | None = None
    hidden_by: Op | None = None
    sink: Mapping[str, Any] = field(default_factory=dict)
    losses: Sequence[tuple[int, float]] = ()
    made_by: Sequence[str] = ()
    words: Vocabulary = Vocabulary()

    @property
    def name(self) -> str:
        """The canonical name of the blamed op."""
        return canonical(self.op.name)

    @property
    def subject(self) -> str:
        """The canonical name of what the user wrote: a backward op's forward op."""
        if self.op.phase is Phase.BACKWARD and self.forward is not None:
            return forward_name(self.forward.name)
        return forward_name(self.op.name)

    @property
    def backward(self) -> bool:
        """The blamed op ran in the backward phase."""
        return self.op.phase is Phase.BACKWARD

    @property
    def inputs(self) -> tuple[TensorRecord, ...]:
        """The blamed op's inputs."""
        return self.op.inputs

    @property
    def out(self) -> TensorRecord:
        """The first output that holds something bad, else the first output."""
        for output in self.op.outputs:
            if output.stats is not None and output.stats.nonfinite:
                return output
        return self.op.outputs[0] if self.op.outputs else TensorRecord()

    @property
    def dtype(self) -> str:
        """The dtype in which the op computed, empty if unknown."""
        candidates = [self.out, *self.inputs]
        return next((t.dtype for t in candidates if limits(t.dtype)), self.out.dtype)

    @property
    def limits(self) -> FloatLimits | None:
        """The range of that dtype."""
        return limits(self.dtype)

    def measured(self, index: int) -> TensorRecord | None:
        """Return an input if it exists and its own values were measured."""
        if index >= len(self.inputs):
            return None
        tensor = self.inputs[index]
        return tensor if tensor.stats is not None and not tensor.overwritten else None

    def largest_input(self) -> float | None:
        """Return the largest finite magnitude among the measured inputs."""
        return magnitude(self.measured(i) for i in range(len(self.inputs)))

    def read(self, index: int = 0) -> TensorRecord | None:
        """Return what the user's op read: the forward op's input if the backward one is blamed."""
        if self.backward and self.forward is not None:
            return self.forward_input(index)
        return self.measured(index)

    def forward_input(self, index: int = 0) -> TensorRecord | None:
        """Return what is known of an input of the forward op, if its values were measured."""
        if self.forward is None or index >= len(self.forward.inputs):
            return None
        tensor = self.forward.inputs[index]
        return tensor if tensor.stats is not None else None


Rule = Callable[[Case], "Advice | None"]
Table = Mapping[str, Sequence[Rule]]
"""Space-separated canonical op names, and the rules to try for them in order."""


def magnitude(tensors: Iterable[TensorRecord | None]) -> float | None:
    """Return the largest finite magnitude of the tensors, ``None`` if none was measured."""
    ends = [
        abs(end)
        for tensor in tensors
        if tensor is not None and tensor.stats is not None
        for end in (tensor.stats.vmin, tensor.stats.vmax)
        if end is not None
    ]
    return max(ends, default=None)


def say(value: float | None) -> str:
    """Write a number for a person, four significant digits.

    >>> say(777.94), say(1e-08), say(65504.0), say(None)
    ('777.9', '1e-08', '65504', 'unknown')
    """
    if value is None:
        return "unknown"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def low(tensor: TensorRecord | None) -> float | None:
    """Return a tensor's smallest finite value, ``None`` if it was not measured."""
    return tensor.stats.vmin if tensor is not None and tensor.stats is not None else None


def high(tensor: TensorRecord | None) -> float | None:
    """Return a tensor's largest finite value, ``None`` if it was not measured."""
    return tensor.stats.vmax if tensor is not None and tensor.stats is not None else None


def may_hold(tensor: TensorRecord | None, value: float) -> bool | None:
    """Tell whether a tensor can hold a value, by its range; ``None`` if it was not measured."""
    bottom, top = low(tensor), high(tensor)
    if tensor is None or tensor.stats is None or bottom is None or top is None:
        return None
    if value == 0 and tensor.stats.zero is not None:
        return tensor.stats.zero > 0
    return bottom <= value <= top


def tiny(dtype: str) -> str:
    """Return a literal for an epsilon that the dtype can hold: float16 rounds 1e-12 to 0.

    >>> tiny("float32"), tiny("float16"), tiny("")
    ('1e-12', '6.104e-05', '1e-12')
    """
    limit = limits(dtype)
    usual = 1e-12
    return say(usual if limit is None else max(usual, limit.smallest_normal))


def growth(case: Case) -> str:
    """Say that training diverged, if the logged losses show it; else nothing.

    Told when the last loss is over 100 times the smallest one: ordinary noise stays below that.
    """
    if len(case.losses) < 2:
        return ""
    step, least = min(case.losses, key=lambda entry: abs(entry[1]))
    last_step, last = case.losses[-1]
    if last_step <= step or abs(last) <= 100 * max(abs(least), 1e-3):
        return ""
    return (
        f" The loss grew from {say(least)} at step {step} to {say(last)} at step {last_step}: "
        "training had diverged."
    )


def plural(amount: int, noun: str) -> str:
    """Write an amount with its noun.

    >>> plural(1, "element"), plural(3, "element")
    ('1 element', '3 elements')
    """
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def bad_counts(tensor: TensorRecord) -> str:
    """Write how much of a tensor is bad: ``7 of 256 outputs are inf`` without the noun.

    >>> from tracelens.events import Stats
    >>> bad_counts(TensorRecord(stats=Stats(numel=256, nan=1, posinf=7, neginf=0)))
    '7 inf and 1 nan of 256'
    """
    stats = tensor.stats
    if stats is None:
        return "an unknown number"
    parts = [
        f"{amount} {word}"
        for amount, word in ((stats.posinf, "inf"), (stats.neginf, "-inf"), (stats.nan, "nan"))
        if amount
    ]
    return f"{' and '.join(parts) or 'none'} of {stats.numel}"


def outcome(case: Case) -> str:
    """Write what came out: ``7 of 256 outputs are inf``; empty if it was not counted."""
    stats = case.out.stats
    if stats is None:
        return ""
    parts = [
        f"{amount} of {stats.numel} outputs {'is' if amount == 1 else 'are'} {word}"
        for amount, word in ((stats.posinf, "inf"), (stats.neginf, "-inf"), (stats.nan, "nan"))
        if amount
    ]
    return " and ".join(parts)


def then(case: Case) -> str:
    """Write the outcome as the end of a sentence: ``: 7 of 256 outputs are inf``."""
    told = outcome(case)
    return f": {told}" if told else ""


def shown(op: Op) -> str:
    """Return an op's name as said in a sentence.

    >>> from tracelens.events import Phase
    >>> shown(Op(0, "aten::exp_", Phase.FORWARD, 0, (), ()))
    'exp_'
    """
    return display(op.name)
