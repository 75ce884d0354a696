"""Why an op made a non-finite value, and what to write instead: one module a family of ops.

``TABLE`` maps canonical op names (`tracelens.analysis.names.canonical`) to rules, tried in order
until one fits. A backward op is looked up by its forward op's name first, since that is the line
the user wrote.
"""

from __future__ import annotations

from dataclasses import replace

from tracelens.analysis.names import canonical
from tracelens.analysis.rules import (
    attention,
    division,
    exponential,
    generic,
    linear_algebra,
    logarithm,
    losses,
    normalisation,
    optimizers,
    products,
    roots,
    trigonometry,
)
from tracelens.analysis.rules.case import Advice, Case, Rule, shown
from tracelens.analysis.state import Bad

__all__ = ["TABLE", "Advice", "Case", "advise"]

_FAMILIES = (
    exponential,
    logarithm,
    roots,
    division,
    trigonometry,
    attention,
    normalisation,
    products,
    losses,
    linear_algebra,
)


_OWN = ("backward", "grad", "grad_fn", "gradient")
"""How the functions are called in which users write gradients of their own."""

_SELECTING = frozenset({"where", "masked_fill", "index_put", "masked_scatter", "nan_to_num"})


def _table() -> dict[str, list[Rule]]:
    table: dict[str, list[Rule]] = {}
    for family in _FAMILIES:
        for names, rules in family.RULES.items():
            for name in names.split():
                table.setdefault(name, []).extend(rules)
    return table


TABLE = _table()


def advise(case: Case) -> Advice:
    """Return the first rule's answer that fits the case; there always is one."""
    told = (
        generic.came_in(case)
        or generic.scalar_argument(case)
        or optimizers.update(case)
        or _custom_backward(case)
        or _by_name(case)
        or generic.unknown_op(case)
    )
    return _where_trap(case, told)


def _by_name(case: Case) -> Advice | None:
    for name in dict.fromkeys((case.subject, case.name)):
        for rule in TABLE.get(name, ()):
            advice = rule(case)
            if advice is not None:
                return advice
    return None


def _custom_backward(case: Case) -> Advice | None:
    """A line inside a user's own ``backward``: its formula is to blame, not the forward op."""
    frame = case.op.source
    if not case.backward or frame is None or frame.function.rsplit(".", 1)[-1] not in _OWN:
        return None
    own = replace(case, forward=None)
    told = _by_name(own) or generic.unknown_op(own)
    return replace(
        told,
        rule="custom-backward",
        why=f"{case.words('custom-gradient')} made it: {told.why}",
        fix=f"{told.fix}; check the formula with {case.words('check-gradient')}",
    )


def _where_trap(case: Case, told: Advice) -> Advice:
    """Add what hiding a bad branch does to gradients: they pass through it all the same."""
    hider = case.hidden_by
    if hider is None or case.origin != "op" or not case.sink:
        return told
    name = shown(hider)
    trap = (
        f"{name} hides it in the forward pass; in the backward pass its zero gradient meets the "
        f"{'inf' if case.kind is Bad.INF else 'nan'}: 0 * inf = nan."
    )
    if case.backward:
        trap = (
            f"{name} does not select this element, but its gradient (0) is computed all the same."
        )
    elif canonical(hider.name) not in _SELECTING:
        return replace(told, why=f"{told.why} {trap}")
    return Advice(
        "where-gradient",
        f"{told.why} {trap}",
        f"make the input of the branch you do not use safe before the op, not its result: "
        f"f({case.words('where', condition='cond', x='x', y='safe')}). {told.fix}",
    )
