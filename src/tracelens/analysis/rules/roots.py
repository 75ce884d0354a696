"""Square roots and norms: negative input, and the infinite slope at 0."""

from __future__ import annotations

from tracelens.analysis.rules.case import (
    Advice,
    Case,
    Table,
    low,
    magnitude,
    may_hold,
    say,
    shown,
    then,
    tiny,
)
from tracelens.analysis.state import Bad

_NORMS = "norm linalg_vector_norm linalg_matrix_norm frobenius_norm dist euclidean_norm"
_DISTANCES = "cdist _cdist_forward _cdist _euclidean_dist pairwise_distance _pdist_forward"


def sqrt_gradient_at_zero(case: Case) -> Advice | None:
    """``1 / (2 * sqrt(x))`` at 0, forward finite, gradient not."""
    if not case.backward or may_hold(case.read(), 0.0) is False:
        return None
    bottom = low(case.read())
    measured = f" (forward input min {say(bottom)})" if bottom is not None else ""
    zero = "; the incoming gradient is 0 there: 0 / 0 = nan" if case.kind is Bad.NAN else ""
    bounded = case.words("at-least", x="x", low=tiny(case.dtype))
    return Advice(
        "sqrt-gradient-at-zero",
        f"the derivative of {case.subject} is infinite at 0{measured}: the backward pass divides "
        f"by 0{zero}{then(case)}.",
        f"{case.words('function', name='sqrt', x=bounded)} or "
        f"{case.words('function', name='sqrt', x='x + 1e-8')}",
    )


def root_of_negative(case: Case) -> Advice | None:
    """``sqrt`` or ``rsqrt`` below 0: usually cancellation in a variance or a distance."""
    bottom = low(case.read())
    if case.kind is not Bad.NAN or case.backward or (bottom is not None and bottom >= 0):
        return None
    bounded = case.words("at-least", x="x", low="0" if case.subject == "sqrt" else "1e-12")
    return Advice(
        "sqrt-of-negative",
        f"{shown(case.op)} of a negative number: input min {say(bottom)}{then(case)}. A value "
        "that should be 0 often comes out slightly negative by rounding (E[x^2] - E[x]^2).",
        f"{case.words('function', name=case.subject, x=bounded)}, or {case.words('variance')}, "
        "which cannot become negative",
    )


def rsqrt_of_zero(case: Case) -> Advice | None:
    """``1 / sqrt(0)``."""
    bottom = low(case.read())
    if case.kind is not Bad.INF or (bottom is not None and bottom > 0):
        return None
    return Advice(
        "rsqrt-of-zero",
        f"{shown(case.op)} is 1 / sqrt(x), infinite at 0: input min {say(bottom)}{then(case)}.",
        f"{case.words('function', name='rsqrt', x='x + 1e-5')}, as normalisation layers do with "
        f"{case.words('eps')}",
    )


def norm_gradient_at_zero(case: Case) -> Advice | None:
    """The norm of a zero vector, or the distance of equal points, has no slope."""
    if not case.backward:
        return None
    return Advice(
        "norm-gradient-at-zero",
        f"the gradient of {case.subject} divides by the norm, which is 0 for a zero vector (or two "
        f"equal points): x / 0{then(case)}.",
        f"{case.words('norm-by-hand')} instead of the norm, or skip the zero rows; "
        f"{case.words('unit-vectors')} for unit vectors",
    )


def norm_overflow(case: Case) -> Advice | None:
    """A norm sums squares, which overflow at the square root of the range."""
    limit = case.limits
    if case.kind is not Bad.INF or case.backward or limit is None:
        return None
    top = magnitude(case.inputs)
    return Advice(
        "norm-overflow",
        f"{shown(case.op)} sums squares: largest magnitude {say(top)}, and "
        f"{say(limit.sqrt_limit)} already squares past the range of {case.dtype}{then(case)}.",
        f"{case.words('wide-norm')} (or float64), or divide by {case.words('largest')} first",
    )


def weight_norm_of_zero(case: Case) -> Advice | None:
    """``g * v / norm(v)`` for a ``v`` that was initialised with zeros."""
    return Advice(
        "weight-norm-of-zero",
        f"{shown(case.op)} divides a weight by its norm, which is 0 for a weight of zeros: "
        f"0 / 0{then(case)}.",
        "initialise the weight with something other than zeros before weight_norm is applied "
        f"({case.words('init-weight')})",
    )


RULES: Table = {
    "_weight_norm _weight_norm_interface": (weight_norm_of_zero,),
    "sqrt": (sqrt_gradient_at_zero, root_of_negative),
    "rsqrt": (sqrt_gradient_at_zero, root_of_negative, rsqrt_of_zero),
    f"{_NORMS} {_DISTANCES} cosine_similarity": (norm_gradient_at_zero, norm_overflow),
}
