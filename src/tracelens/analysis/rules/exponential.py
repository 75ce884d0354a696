"""Exponentials and powers: what grows past the dtype's range."""

from __future__ import annotations

import math

from tracelens.analysis.dtypes import FloatLimits
from tracelens.analysis.rules.case import (
    Advice,
    Case,
    Table,
    growth,
    high,
    low,
    magnitude,
    may_hold,
    say,
    shown,
    then,
)
from tracelens.analysis.state import Bad


def _limit_of(name: str, limit: FloatLimits) -> float:
    """Return the largest input whose result is finite: the inverse function of ``largest``."""
    if name == "exp2":
        return math.log2(limit.largest)
    if name in ("sinh", "cosh"):
        return limit.exp_limit + math.log(2.0)
    return limit.exp_limit


def exp_overflow(case: Case) -> Advice | None:
    """``exp(x)`` for an ``x`` past ``log(finfo.max)``."""
    limit = case.limits
    tensor = case.read()
    top = magnitude([tensor]) if case.subject in ("sinh", "cosh") else high(tensor)
    if limit is None or case.kind is not Bad.INF:
        return None
    name = shown(case.forward or case.op) if case.backward else shown(case.op)
    ceiling = _limit_of(case.subject, limit)
    measured = f"input max {say(top)}" if top is not None else "its input is too large"
    bounded = case.words("at-most", x="x", high=math.floor(ceiling))
    return Advice(
        "exp-overflow",
        f"{name} overflows: {measured}, limit for {case.dtype} is {say(ceiling)}{then(case)}."
        + growth(case),
        f"{case.words('function', name=case.subject, x=bounded)}, or subtract the maximum first "
        f"({case.words('stable-exponentials')})",
    )


def pow_negative_base(case: Case) -> Advice | None:
    """A negative base with an exponent that is not whole has no real result."""
    bottom = low(case.read())
    if case.kind is not Bad.NAN or bottom is None or bottom >= 0:
        return None
    return Advice(
        "pow-negative-base",
        f"{shown(case.op)} raises a negative base (min {say(bottom)}) to a power that is not "
        f"whole{then(case)}.",
        f"{case.words('pow', x=case.words('at-least', x='x', low=0), p='p')}, or "
        f"{case.words('signed-power')}",
    )


def pow_gradient_at_zero(case: Case) -> Advice | None:
    """``p * x**(p - 1)`` is infinite at 0 for ``p < 1``."""
    if not case.backward or may_hold(case.read(), 0.0) is False:
        return None
    return Advice(
        "pow-gradient-at-zero",
        "the derivative of x**p is p * x**(p - 1): infinite at x = 0 for p < 1, and 0 * inf = nan "
        f"where the incoming gradient is 0{then(case)}.",
        f"{case.words('power', x=case.words('at-least', x='x', low='1e-12'), p='p')}, or add a "
        f"small constant inside: {case.words('shifted-power')}",
    )


def pow_of_zero(case: Case) -> Advice | None:
    """``0 ** p`` for a negative ``p``."""
    tensor = case.read()
    top = magnitude([tensor])
    if case.kind is not Bad.INF or case.backward or not may_hold(tensor, 0.0):
        return None
    if top is not None and case.limits is not None and top > case.limits.largest**0.125:
        return None
    return Advice(
        "pow-of-zero",
        f"{shown(case.op)} raises 0 to a negative power: 1 / 0{then(case)}.",
        f"{case.words('power', x=case.words('at-least', x='x', low='1e-12'), p='p')} for a "
        "negative p",
    )


def pow_overflow(case: Case) -> Advice | None:
    """A power of a large magnitude."""
    limit = case.limits
    top = magnitude([case.read()])
    if case.kind is not Bad.INF or limit is None:
        return None
    measured = f"largest magnitude {say(top)}" if top is not None else "its input is too large"
    square = ""
    if case.subject in ("square", "squared_difference"):
        square = f" (only up to {say(limit.sqrt_limit)} squares to a finite value)"
    return Advice(
        "pow-overflow",
        f"{shown(case.op)} overflows {case.dtype}: {measured}{square}, limit "
        f"{say(limit.largest)}{then(case)}." + growth(case),
        "scale the values down before the power (normalise the input), compute in float32 or "
        f"float64: {case.words('power', x=case.words('to-float32'), p='p')}, or lower the learning "
        "rate if training diverged",
    )


RULES: Table = {
    "exp exp2 expm1 sinh cosh logsumexp logaddexp softplus": (exp_overflow,),
    "pow square squared_difference l2_loss": (
        pow_gradient_at_zero,
        pow_negative_base,
        pow_of_zero,
        pow_overflow,
    ),
    "float_power": (pow_gradient_at_zero, pow_negative_base, pow_of_zero, pow_overflow),
}
