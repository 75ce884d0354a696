"""Optimizer updates: an eps that the dtype rounds to 0, divergence, overflowed moments."""

from __future__ import annotations

from tracelens.analysis.rules.case import (
    Advice,
    Case,
    growth,
    may_hold,
    plural,
    say,
    shown,
    then,
)
from tracelens.analysis.state import Bad
from tracelens.events import Phase

_DEFAULT_EPS = {"torch": 1e-8, "tensorflow": 1e-7}  # of Adam, AdamW, RMSprop and NAdam
_FUSED = ("_fused", "resource_apply", "resource_sparse_apply", "apply_", "sparse_apply")


def update(case: Case) -> Advice | None:
    """Explain an op of an optimizer step; a division is told like any other (a user's own)."""
    if case.op.phase is not Phase.OPTIMIZER:
        return None
    fused = case.name.startswith(_FUSED)
    # Keras' optimizers are made of plain ops; a user's own update has no optimizer phase there.
    built_in = case.words.framework == "tensorflow" and case.name in ("div", "rsqrt", "reciprocal")
    if case.name == "addcdiv" or built_in or (fused and case.kind is Bad.NAN):
        return _zero_denominator(case)
    if case.kind is Bad.INF and case.name not in ("div", "reciprocal", "rsqrt"):
        return _overflow(case)
    if case.name == "sqrt":
        return Advice(
            "optimizer-negative-moment",
            f"{shown(case.op)} of a negative second moment{then(case)}: the optimizer state was "
            "changed from outside, or loaded wrong.",
            "reset the optimizer state (a new optimizer), and check what was loaded into it",
        )
    return None


def _zero_denominator(case: Case) -> Advice:
    limit = case.limits
    denominator = None
    if not case.name.startswith(_FUSED):
        denominator = case.measured(len(case.inputs) - 1)
    eps, default = case.words("eps"), _DEFAULT_EPS.get(case.words.framework, 1e-8)
    zero = may_hold(denominator, 0.0)
    told = "0 / 0" if case.kind is Bad.NAN else "x / 0"
    if limit is not None and limit.smallest / 2 > 1e-8:
        small = f"an {eps} of {say(default)} (the default) is 0 in"
        if limit.smallest / 2 <= default:
            small = f"an {eps} below {say(limit.smallest / 2)} is 0 in"
        why = (
            f"{shown(case.op)} divides by sqrt(v) + {eps}, which is 0: {small} "
            f"{case.dtype} (smallest {say(limit.smallest)}), and v is 0 "
            f"where the gradient was 0 or its square underflowed: {told}{then(case)}."
        )
        fix = f"{eps} >= 1e-4 for {case.dtype} parameters, or {case.words('half-weights')}"
        return Advice("optimizer-eps-underflow", why, fix)
    counted = ""
    if zero and denominator is not None and denominator.stats and denominator.stats.zero:
        counted = f" ({plural(denominator.stats.zero, 'element')})"
    return Advice(
        "optimizer-zero-denominator",
        f"{shown(case.op)} divides by 0{counted} in the update: {told}{then(case)}. The {eps} of "
        "the optimizer is 0 or too small, and the gradient of those elements was 0.",
        f"give the optimizer {eps}={say(default)} (float16: 1e-4)",
    )


def _overflow(case: Case) -> Advice:
    limit = case.limits
    top = case.largest_input()
    largest = f", limit for {case.dtype} is {say(limit.largest)}" if limit else ""
    squared = ""
    if case.name in ("addcmul", "mul", "square", "pow") and limit is not None:
        squared = f" (squares overflow from {say(limit.sqrt_limit)} on)"
    return Advice(
        "optimizer-overflow",
        f"{shown(case.op)} of the update overflows: largest input {say(top)}{largest}{squared}"
        f"{then(case)}." + growth(case),
        f"lower the learning rate, {case.words('clip-before-step')}",
    )
