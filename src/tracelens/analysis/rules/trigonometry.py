"""Inverse trigonometric and hyperbolic functions: their domain and their vertical slopes."""

from __future__ import annotations

from tracelens.analysis.rules.case import Advice, Case, Table, high, low, say, shown, then

_UNIT = "acos asin arccos arcsin"


def _inside(case: Case) -> str:
    """Write the function of an input that is kept inside the open interval."""
    bounded = case.words("between", x="x", low="-1 + 1e-6", high="1 - 1e-6")
    return case.words("function", name=case.subject, x=bounded)


def inverse_domain(case: Case) -> Advice | None:
    """``acos`` and ``asin`` beyond ±1."""
    bottom, top = low(case.read()), high(case.read())
    if case.backward or (bottom is not None and top is not None and bottom >= -1 and top <= 1):
        return None
    return Advice(
        "trig-domain",
        f"{shown(case.op)} is defined on [-1, 1]: input min {say(bottom)}, max {say(top)}"
        f"{then(case)}. A cosine computed as a dot product passes 1 by rounding.",
        f"{_inside(case)}, or {case.words('atan2', y='sin', x='cos')}",
    )


def inverse_gradient(case: Case) -> Advice | None:
    """``1 / sqrt(1 - x**2)`` at ±1."""
    if not case.backward:
        return None
    bottom, top = low(case.read()), high(case.read())
    measured = f" (input min {say(bottom)}, max {say(top)})" if bottom is not None else ""
    return Advice(
        "trig-gradient-at-edge",
        f"the derivative of {case.subject} is infinite at -1 and 1{measured}: the backward pass "
        f"divides by sqrt(1 - x^2) = 0{then(case)}.",
        f"{_inside(case)}, or {case.words('atan2', y='sin', x='cos')}",
    )


def atanh_edge(case: Case) -> Advice | None:
    """``atanh`` and ``erfinv`` at ±1 (Inf) and beyond (NaN)."""
    bottom, top = low(case.read()), high(case.read())
    if bottom is not None and top is not None and bottom > -1 and top < 1:
        return None
    return Advice(
        "open-interval-domain",
        f"{case.subject} is infinite at -1 and 1 and undefined beyond: input min {say(bottom)}, "
        f"max {say(top)}{then(case)}.",
        _inside(case),
    )


def acosh_domain(case: Case) -> Advice | None:
    """``acosh`` below 1, and its slope at 1."""
    bottom = low(case.read())
    if bottom is not None and bottom > 1:
        return None
    return Advice(
        "trig-domain",
        f"{case.subject} is defined from 1 on, with an infinite slope there: input min "
        f"{say(bottom)}{then(case)}.",
        case.words("function", name="acosh", x=case.words("at-least", x="x", low="1 + 1e-6")),
    )


def atan2_gradient(case: Case) -> Advice | None:
    """``atan2(0, 0)`` has no gradient: it divides by ``x**2 + y**2``."""
    if not case.backward:
        return None
    moved = case.words("where", condition="(x == 0) & (y == 0)", x="1", y="x")
    return Advice(
        "atan2-gradient-at-origin",
        f"the gradient of atan2(y, x) divides by x^2 + y^2, which is 0 at the origin{then(case)}.",
        f"move the points off the origin: {case.words('atan2', y='y', x=moved)}",
    )


RULES: Table = {
    _UNIT: (inverse_gradient, inverse_domain),
    "atanh arctanh erfinv special_erfinv": (atanh_edge,),
    "acosh arccosh": (acosh_domain,),
    "atan2 arctan2": (atan2_gradient,),
}
