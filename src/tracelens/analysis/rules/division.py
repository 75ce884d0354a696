"""Division: by zero, of zero by zero, and of something large by something small."""

from __future__ import annotations

from tracelens.analysis.rules.case import (
    Advice,
    Case,
    Table,
    may_hold,
    plural,
    say,
    shown,
    then,
    tiny,
)
from tracelens.analysis.rules.case import magnitude as largest
from tracelens.analysis.state import Bad

_DIVISIONS = "div true_divide divide floor_divide fmod remainder floor_div floor_mod mod xdivy"


def division_by_zero(case: Case) -> Advice | None:
    """``x / 0`` is Inf, ``0 / 0`` is NaN."""
    below = case.read(1)
    holds_zero = may_hold(below, 0.0)
    if case.backward and case.name not in ("div", "true_divide", "mul", "neg"):
        return None
    if holds_zero is False:
        return None
    zero = below.stats.zero if below is not None and below.stats is not None else None
    how_many = "the denominator is 0"
    if zero:
        how_many = f"{plural(zero, 'element')} of the denominator {'is' if zero == 1 else 'are'} 0"
    if below is None:
        how_many = "the denominator is 0 (a scalar, or not measured)"
    result = "0 / 0 = nan" if case.kind is Bad.NAN else "x / 0 = inf"
    rule = "zero-by-zero" if case.kind is Bad.NAN else "division-by-zero"
    again = case.backward and case.forward is not None
    where = "the backward pass of the division divides by it again: " if again else ""
    eps = tiny(case.dtype)
    return Advice(
        rule,
        f"{how_many}: {where}{result}{then(case)}.",
        f"x / {case.words('at-least', x='y', low=eps)} for a positive y, or "
        f"{case.words('safe-division')}{case.words('both-sides')}",
    )


def division_overflow(case: Case) -> Advice | None:
    """A large numerator over a small denominator."""
    limit = case.limits
    if case.kind is not Bad.INF or limit is None:
        return None
    top = largest([case.read(0)])
    return Advice(
        "division-overflow",
        f"{shown(case.op)} overflows {case.dtype} (limit {say(limit.largest)}): numerator up to "
        f"{say(top)}, denominator close to 0{then(case)}.",
        f"x / (y + eps) with an eps that the dtype can hold (at least {tiny(case.dtype)} here), "
        "or compute in float32",
    )


def reciprocal_of_zero(case: Case) -> Advice | None:
    """``1 / 0``, or its derivative ``-1 / x**2``."""
    read = case.read()
    if may_hold(read, 0.0) is False and not case.backward:
        return None
    top = case.largest_input()
    if case.backward and not may_hold(read, 0.0) and top is not None and case.limits is not None:
        floor = f"1 / {say(case.limits.sqrt_limit)}"
        return Advice(
            "division-overflow",
            f"the derivative of 1 / x is -1 / x^2: with 1 / x up to {say(top)} it leaves the range "
            f"of {case.dtype} (limit {say(case.limits.largest)}){then(case)}.",
            f"keep x away from 0: 1 / {case.words('at-least', x='x', low=floor)} at the least",
        )
    return Advice(
        "division-by-zero",
        f"{case.subject} of 0 is 1 / 0 = inf{then(case)}.",
        f"1 / {case.words('at-least', x='x', low=tiny(case.dtype))} for a positive x, or "
        "1 / (x + eps)",
    )


RULES: Table = {
    f"{_DIVISIONS} addcdiv": (division_by_zero, division_overflow),
    "reciprocal inv": (reciprocal_of_zero, division_overflow),
}
