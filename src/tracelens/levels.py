"""Where a module call or a composite op ends, for `next`, `return` and their reverses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracelens.events import Op
from tracelens.predicates import Mask
from tracelens.storage.chunks import Chunk

_SEPARATORS = (".", "/")


@dataclass(frozen=True, slots=True)
class Beside:
    """The op is not deeper than another: in no module inside its module, in no composite op.

    A child's id is above its parent's. So of the ops around one with parent P, exactly those that
    are inside of a sibling have a parent above P.

    Attributes:
        module: the other op's module.
        parent_id: the composite op around it, -1 if there is none.
    """

    module: str
    parent_id: int

    @classmethod
    def of(cls, op: Op) -> Beside:
        """Return the condition of not being deeper than an op."""
        return cls(op.module, op.parent_id)

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        codes, texts = chunk.texts("module")
        deeper = [_is_inside(text, self.module) and text != self.module for text in texts]
        shallow = ~np.array([*deeper, False], dtype=np.bool_)
        found: Mask = shallow[codes] & (chunk.integers("parent_id") <= self.parent_id)
        return found


@dataclass(frozen=True, slots=True)
class Beyond:
    """The op is outside of the composite op around another, or else of its module's call.

    A module's call also ends with its phase and its training step.

    Attributes:
        op: the other op.
    """

    op: Op

    @classmethod
    def of(cls, op: Op) -> Beyond:
        """Return the condition of being outside of what an op is in."""
        return cls(op)

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        if self.op.parent_id >= 0:
            outside: Mask = chunk.integers("parent_id") < self.op.parent_id
            return outside
        codes, texts = chunk.texts("module")
        inside = np.array([*(_is_inside(t, self.op.module) for t in texts), not self.op.module])
        phases, names = chunk.texts("phase")
        phase = names.index(self.op.phase.label) if self.op.phase.label in names else -2
        found: Mask = ~inside[codes] | (phases != phase)
        found |= chunk.integers("step") != self.op.step
        return found


@dataclass(frozen=True, slots=True)
class OtherStep:
    """The op is of a later (or earlier) training step.

    Attributes:
        step: the training step to leave.
        direction: above 0 for later ones.
    """

    step: int
    direction: int

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it."""
        steps = chunk.integers("step")
        found: Mask = steps > self.step if self.direction > 0 else steps < self.step
        return found


def _is_inside(module: str, outer: str) -> bool:
    """Tell whether a module is another or inside of it; everything is inside of no module."""
    if not outer or module == outer:
        return True
    return module.startswith(outer) and module[len(outer)] in _SEPARATORS
