"""What can be said of any op: the honest last resort, and causes that are not ops."""

from __future__ import annotations

from tracelens.analysis.names import BATCH_OPS, FEED, FILLS
from tracelens.analysis.rules.case import Advice, Case, bad_counts, outcome, say, shown, then
from tracelens.analysis.state import Bad
from tracelens.events import OpFlag, Phase


def unknown_op(case: Case) -> Advice:
    """Explain an op without a rule: what was measured, and how to look closer."""
    word = "NaN" if case.kind is Bad.NAN else "Inf"
    name = shown(case.op)
    largest = case.largest_input()
    ranged = f"its inputs were finite (largest magnitude {say(largest)})"
    if largest is None:
        ranged = "no bad input was seen"
    told = outcome(case)
    made = f"{name} is where the first {word} appears: {ranged}" + (f", {told}" if told else "")
    limit = case.limits
    if case.kind is Bad.INF and limit is not None:
        made += f"; the largest {case.dtype} is {say(limit.largest)}"
    where = "the input of its forward op" if case.backward else "its inputs"
    return Advice(
        "non-finite-origin",
        f"{made}. No rule is known for this op.",
        f"check {where} against the op's domain and clamp them, or compute in a wider dtype; "
        'tl.tap(x, "name") before the line records the values',
    )


def scalar_argument(case: Case) -> Advice | None:
    """Explain an op that was handed a Python number which is NaN or Inf itself."""
    scalar = bool(case.op.flags & OpFlag.CONSTANT) and case.name not in FILLS
    read = [t.stats for t in case.inputs if t.stats is not None and not t.overwritten]
    if case.origin != "op" or not scalar or any(stats.nonfinite for stats in read):
        return None
    name = shown(case.op)
    update = case.op.phase is Phase.OPTIMIZER
    which = "the learning rate or another setting of the optimizer" if update else "a scale"
    return Advice(
        "non-finite-scalar",
        f"a number given to {name} is itself NaN or Inf ({which}); its tensors were "
        f"finite{then(case)}.",
        "print the number before this line; a schedule or a ratio that divides by 0 is the usual "
        "reason: assert math.isfinite(value)",
    )


def came_in(case: Case) -> Advice | None:
    """Explain causes that no op computed: data, parameters, constants, memory, lost records."""
    tensor = case.tensor
    counts = f" ({bad_counts(tensor)})" if tensor is not None and tensor.stats else ""
    name = shown(case.op)
    if case.origin == "data" and case.op.name not in BATCH_OPS:
        return Advice(
            "bad-data",
            f"the values taken in by {name} were already non-finite{counts}: this line reads them "
            "from a file, a list or an array.",
            f"check what is read here: {case.words('assert-finite')}, and repair its source "
            f"({case.words('nan-to-num')} for missing values)",
        )
    if case.origin == "data" and case.op.name == FEED:
        return Advice(
            "bad-data",
            f"what the program fed was already non-finite{counts}.",
            f"check what is fed before the run: {case.words('check-feed')}",
        )
    if case.origin == "data":
        return Advice(
            "bad-data",
            f"the batch already held non-finite values when {name} handed it over{counts}.",
            "find the samples named here in the data set and repair or drop them: "
            f"{case.words('drop-samples')}",
        )
    if case.origin == "outside":
        return Advice(
            "bad-outside-value",
            f"an input of {name} was already non-finite{counts}; no recorded op wrote it, so it "
            "came from outside: data, a file, numpy, or code before recording began.",
            f"check where this tensor is made: {case.words('assert-finite')} there",
        )
    if case.origin == "parameter":
        return Advice(
            "bad-parameter",
            f"a parameter read by {name} was already non-finite{counts} before anything recorded "
            "wrote it: a bad checkpoint, initialisation, or an update before recording began.",
            f"check the weights after loading: {case.words('check-weights')}, and start recording "
            "earlier if training made them bad",
        )
    if case.origin == "uninitialised":
        return Advice(
            "uninitialised-memory",
            f"the output of {name} was read before anything wrote it: it holds whatever was in "
            "memory.",
            f"{case.words('zeros')}, or slice off the part that was never written",
        )
    if case.origin == "constant" and case.op.name in BATCH_OPS:
        return Advice(
            "non-finite-constant",
            f"{name} handed over infinities{counts} beside one constant, as a mask, a weight or an "
            "initial value holds, and they were used as values.",
            "check where they come from: a weight that divides by a count of 0, or a mask that "
            f"should be a large finite value such as {case.words('lowest', x='x')}",
        )
    if case.origin == "constant":
        word = "NaN" if case.kind is Bad.NAN else "Inf"
        return Advice(
            "non-finite-constant",
            f"{name} writes a constant {word} on purpose{counts}, and it was used as a value "
            "instead of being masked away.",
            "make sure that what is masked is never selected: check the targets and the mask, "
            f"or use a large finite value such as {case.words('lowest', x='x')}",
        )
    if case.origin == "unresolved":
        return Advice(
            "lost-trail",
            f"{name} is the earliest bad op that is still known; what wrote its bad input was "
            "not recorded.",
            'record more of the run (a larger ring, or capture="ops"), or start recording earlier',
        )
    return None
