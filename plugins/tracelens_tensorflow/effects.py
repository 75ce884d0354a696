"""What running a graph changes outside of it, and what it takes from there.

A replay must know: the variables that a graph writes (they are put back), the ops whose outputs
would not come out again (batches, random numbers, Python functions: their outputs are kept while
the program runs), and the ops that must not run twice (prints, summaries, assertions).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from tracelens_tensorflow import optables, plans
from tracelens_tensorflow.plans import CALL, RUN, WHILE, NotInterpretable, plan_of

RANDOM = frozenset(
    "RandomUniform RandomStandardNormal RandomUniformInt TruncatedNormal RandomGamma "
    "RandomGammaGrad RandomPoisson RandomPoissonV2 Multinomial RandomShuffle "
    "ParameterizedTruncatedNormal Timestamp".split()
)
"""Ops whose state cannot be put back: a second run gives other numbers."""

GENERATORS = frozenset(
    "RngReadAndSkip RngSkip StatefulRandomBinomial StatefulStandardNormal StatefulStandardNormalV2 "
    "StatefulTruncatedNormal StatefulUniform StatefulUniformInt StatefulUniformFullInt".split()
)
"""Ops that keep their state in a variable, which can be put back."""

REPEATABLE = frozenset(
    "ReadVariableOp VarHandleOp VarIsInitializedOp VariableShape ResourceGather ResourceGatherNd "
    "Placeholder PlaceholderWithDefault LookupTableFind LookupTableFindV2 LookupTableSizeV2 "
    "LookupTableExportV2 TensorArrayV3 Stack StackV2 "
    "AnonymousHashTable AnonymousMutableHashTable AnonymousIteratorV2 AnonymousIteratorV3".split()
)
"""Stateful ops that may run again: they read, or make something of their own."""

ITERATORS = frozenset("IteratorGetNext IteratorGetNextSync IteratorGetNextAsOptional".split())

_MAX_REMARKS = 4


@dataclass
class Effects:
    """What a graph does outside of it, the graphs it runs included.

    Attributes:
        reads: inputs of the graph that are handles of variables it uses in any way, by place.
        writes: those of them that it writes.
        keep: ops whose outputs a second run needs from the first, in the graph itself or in
            functions that it calls, in the order in which they run.
        lost: like ``keep``, but inside a loop or branch, where they cannot be kept.
        skip: types of ops that must not run twice.
    """

    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    keep: list[tf.Operation] = field(default_factory=list)
    lost: list[tf.Operation] = field(default_factory=list)
    skip: set[str] = field(default_factory=set)

    @property
    def repeatable(self) -> bool:
        """Whether the graph may be called as a whole again: it only uses variables."""
        return not (self.keep or self.lost or self.skip)


def effects_of(graph: Any) -> Effects:
    """Return a graph's effects, found out once.

    Raises:
        NotInterpretable: the graph cannot be run op by op.
    """
    plan = plan_of(graph)
    known = plan.notes.get("effects")
    if known is None:
        # Set first: a function that calls itself adds nothing new.
        known = plan.notes["effects"] = Effects()
        _Survey(plan, known).run()
    return known


def ops_to_keep(graph: Any) -> list[tf.Operation]:
    """Return the ops of a graph (not of those it calls) whose outputs a replay needs.

    Whoever rewrites a function makes it hand out their outputs with each call.
    """
    try:
        return [op for op in effects_of(graph).keep if op.graph is graph]
    except NotInterpretable:
        return []


class _Survey:
    def __init__(self, plan: plans.Plan, effects: Effects) -> None:
        self._plan = plan
        self._effects = effects
        # Where a resource comes from: places of the graph's inputs; nothing if it is its own.
        self._origins: dict[int, frozenset[int]] = {
            slot: frozenset((slot,)) for slot in plan.inputs
        }

    def run(self) -> None:
        for step in self._plan.instructions:
            handles = self._handles(step)
            if step.kind == RUN:
                self._leaf(step, handles)
            elif step.graphs:
                self._structured(step)
            everything = frozenset().union(*handles) if handles else frozenset()
            for place in range(step.n_outputs):
                if step.op.outputs[place].dtype in (tf.resource, tf.variant):
                    self._origins[step.base + place] = everything

    def _handles(self, step: plans.Instruction) -> list[frozenset[int]]:
        return [
            self._origins.get(slot, frozenset())
            for slot, tensor in zip(step.inputs, step.op.inputs, strict=True)
            if tensor.dtype == tf.resource
        ]

    def _leaf(self, step: plans.Instruction, handles: list[frozenset[int]]) -> None:
        op, kind, effects = step.op, step.op_type, self._effects
        if optables.writes(op) or kind in GENERATORS:
            written = handles if kind.startswith(optables.APPLIES) else handles[:1]
            effects.writes.update(*written)
            effects.reads.update(*handles)
        elif kind in REPEATABLE or not op.op_def.is_stateful:
            effects.reads.update(*handles)
        elif handles and not any(handles):
            pass  # It works on something that this run made.
        elif op.outputs:
            effects.keep.append(op)
            if kind not in RANDOM:
                effects.skip.add(kind)
        elif kind != "NoOp":
            effects.skip.add(kind)

    def _structured(self, step: plans.Instruction) -> None:
        effects = self._effects
        first = 0 if step.kind in (CALL, WHILE) else 1
        for name in step.graphs:
            inner = effects_of(self._plan.callee(name).graph)
            for mine, theirs in ((effects.reads, inner.reads), (effects.writes, inner.writes)):
                for place in theirs:
                    mine.update(self._origins.get(step.inputs[first + place], ()))
            if step.kind == CALL:
                effects.keep += inner.keep
            else:
                effects.lost += inner.keep
            effects.lost += inner.lost
            effects.skip |= inner.skip


def remarks_on(effects: Effects, kept: Any) -> list[str]:
    """Return why a second run may differ: what could not be kept, one clause for each op.

    Args:
        effects: of the graph.
        kept: ops whose outputs were kept.
    """
    found = [
        f"{op.type} ({op.name}) gives other numbers when run again"
        for op in (*effects.keep, *effects.lost)
        if op not in kept and op.type in RANDOM
    ]
    more = len(found) - _MAX_REMARKS
    return found[:_MAX_REMARKS] + ([f"so do {more} more ops"] if more > 0 else [])
