"""Logarithms and their relatives: 0 gives -inf, less gives NaN, and so does the derivative."""

from __future__ import annotations

from tracelens.analysis.rules.case import (
    Advice,
    Case,
    Table,
    high,
    low,
    say,
    shown,
    then,
    tiny,
)
from tracelens.analysis.state import Bad

_BETTER = {
    "softmax": "{log-softmax} instead of log(softmax(logits))",
    "_softmax": "{log-softmax} instead of log(softmax(logits))",
    "sigmoid": "{log-sigmoid} instead of log(sigmoid(logits))",
    "exp": "the exponent itself: log(exp(x)) is x (logsumexp for a sum of exponentials)",
    "sum": "{logsumexp} if the sum is of exponentials",
}
"""What made the input of a logarithm, and what does both at once; phrases in braces."""


def _better(case: Case) -> str:
    told = next((_BETTER[made] for made in case.made_by if made in _BETTER), "")
    for phrase in ("log-softmax", "log-sigmoid", "logsumexp"):
        told = told.replace(f"{{{phrase}}}", case.words(phrase))
    return told


def log_domain(case: Case) -> Advice | None:
    """``log(x)`` at or below 0 (-1 for ``log1p``), forward or in the derivative ``1 / x``."""
    name = case.subject
    edge = -1.0 if name == "log1p" else 0.0
    tensor = case.read()
    bottom = low(tensor)
    if bottom is not None and bottom > edge and not case.backward:
        return None
    safe = tiny(tensor.dtype if tensor is not None else case.dtype)
    better = _better(case)
    bounded = case.words("at-least", x="x", low=safe if name != "log1p" else f"-1 + {safe}")
    fix = case.words("function", name=name, x=bounded)
    if name == "log":
        fix = f"{better}, or {fix}" if better else f"{fix}, or {case.words('stable-logarithms')}"
    measured = f"input min {say(bottom)}" if bottom is not None else "the input was not measured"
    if case.backward:
        return Advice(
            "log-gradient-at-zero",
            f"the derivative of {name} is 1 / {'(1 + x)' if edge else 'x'}, infinite at "
            f"{say(edge)} ({measured}); a zero gradient there gives 0 / 0 = nan{then(case)}.",
            fix,
        )
    rule = "log-of-zero" if case.kind is Bad.INF else "log-of-negative"
    result = "-inf" if case.kind is Bad.INF else "nan"
    where = f"at {say(edge)}" if case.kind is Bad.INF else f"below {say(edge)}"
    return Advice(rule, f"{shown(case.op)} is {result} {where}: {measured}{then(case)}.", fix)


def logit_domain(case: Case) -> Advice | None:
    """``log(p / (1 - p))`` outside the open interval (0, 1)."""
    bottom, top = low(case.read()), high(case.read())
    if bottom is not None and top is not None and bottom > 0 and top < 1:
        return None
    return Advice(
        "logit-domain",
        f"{shown(case.op)} needs values strictly between 0 and 1: input min {say(bottom)}, max "
        f"{say(top)}{then(case)}.",
        f"{case.words('safe-logit')}, or keep the logits instead of the probabilities",
    )


def gamma_pole(case: Case) -> Advice | None:
    """``lgamma`` and ``digamma`` at 0 and the negative whole numbers."""
    bottom = low(case.read())
    if bottom is not None and bottom > 0:
        return None
    return Advice(
        "gamma-pole",
        f"{shown(case.op)} has poles at 0, -1, -2 …: input min {say(bottom)}{then(case)}.",
        f"{case.words('at-least', x='x', low='1e-6')} before it; concentrations need softplus(x) + "
        "1e-6",
    )


def xlogy_domain(case: Case) -> Advice | None:
    """``x * log(y)`` with a ``y`` at or below 0."""
    bottom = low(case.read(1))
    if bottom is not None and bottom > 0:
        return None
    return Advice(
        "log-of-zero" if case.kind is Bad.INF else "log-of-negative",
        f"{shown(case.op)} takes the logarithm of its second input: min {say(bottom)}{then(case)}.",
        case.words("safe-xlogy", low=tiny(case.dtype)),
    )


RULES: Table = {
    "log log2 log10 log1p": (log_domain,),
    "logit special_logit": (logit_domain,),
    "lgamma digamma polygamma mvlgamma": (gamma_pole,),
    "xlogy special_xlogy special_xlog1py xlog1py": (xlogy_domain,),
}
