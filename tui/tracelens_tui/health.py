"""How an op fares, as a glyph and a word: a state is never told by colour alone."""

from __future__ import annotations

from dataclasses import dataclass

from tracelens.events import Op, OpFlag, Stats, TensorRecord

_NEAR_LIMIT = {"float16": 3e4, "bfloat16": 1e38, "float32": 1e38}
"""Half of what the dtype can hold, roughly: one more doubling overflows."""


@dataclass(frozen=True, slots=True)
class Health:
    """One state.

    Attributes:
        glyph: one character, distinct from every other state's.
        word: what it means.
        tone: the component class that colours it: ``error``, ``warning``, ``good``, ``muted``.
        rank: higher is worse; a parent shows its worst child.
    """

    glyph: str
    word: str
    tone: str
    rank: int


UNKNOWN = Health("·", "not measured", "muted", 0)
VIEW = Health("~", "a view: wrote nothing", "muted", 1)
GOOD = Health("✓", "finite", "good", 2)
GARBAGE = Health("░", "uninitialised memory", "muted", 3)
ZERO = Health("0", "all zero", "warning", 4)
HUGE = Health("▲", "close to overflow", "warning", 5)
INF = Health("∞", "Inf", "error", 6)
NAN = Health("✖", "NaN", "error", 7)

LEGEND = (NAN, INF, HUGE, ZERO, GOOD, VIEW, GARBAGE, UNKNOWN)


def of_stats(stats: Stats | None, dtype: str = "") -> Health:
    """Return the state of one tensor."""
    if stats is None:
        return UNKNOWN
    if stats.nan:
        return NAN
    if stats.posinf or stats.neginf:
        return INF
    limit = _NEAR_LIMIT.get(dtype)
    if limit is not None and stats.vmin is not None and stats.vmax is not None:
        if max(-stats.vmin, stats.vmax) > limit:
            return HUGE
        if stats.numel > 1 and stats.vmin == stats.vmax == 0:
            return ZERO
    return GOOD


def of_tensor(tensor: TensorRecord) -> Health:
    """Return the state of an input or output."""
    return of_stats(tensor.stats, tensor.dtype)


def of_op(op: Op) -> Health:
    """Return the worst state of an op's outputs."""
    if op.flags & OpFlag.GARBAGE:
        return GARBAGE
    worst = max((of_tensor(tensor) for tensor in op.outputs), key=_rank, default=UNKNOWN)
    if worst is UNKNOWN:
        if op.flags & OpFlag.HIT:
            return NAN
        if op.flags & OpFlag.VIEW:
            return VIEW
        if op.flags & OpFlag.CHECKED:
            return GOOD
    return worst


def worst_of(nan: int, inf: int) -> Health:
    """Return the state that counts of NaN and Inf elements tell."""
    return NAN if nan else INF if inf else GOOD


def _rank(health: Health) -> int:
    return health.rank
