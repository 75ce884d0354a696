"""Why an op made a non-finite value, and what to write instead: one rule a family of ops.

``TABLE`` maps canonical op names (`tracelens.analysis.names.canonical`) to rules. A backward op
is looked up by its forward op's name first, since that is the line the user wrote.
"""

from __future__ import annotations

from tracelens.analysis.rules import generic
from tracelens.analysis.rules.case import Advice, Case, Rule

TABLE: dict[str, list[Rule]] = {}

__all__ = ["TABLE", "Advice", "Case", "advise"]


def advise(case: Case) -> Advice:
    """Return the first rule's answer that fits the case; there always is one."""
    told = generic.came_in(case)
    if told is not None:
        return told
    for name in (case.subject, case.name):
        for rule in TABLE.get(name, ()):
            advice = rule(case)
            if advice is not None:
                return advice
    return generic.unknown_op(case)
