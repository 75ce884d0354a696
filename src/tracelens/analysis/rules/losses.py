"""Loss functions, whose inputs have a range that nobody checks."""

from __future__ import annotations

from tracelens.analysis.rules.case import Advice, Case, Table, high, low, say, shown, then
from tracelens.analysis.rules.case import magnitude as largest
from tracelens.analysis.state import Bad


def probabilities_out_of_range(case: Case) -> Advice | None:
    """Binary cross entropy takes probabilities, not logits."""
    bottom, top = low(case.read()), high(case.read())
    if bottom is None or top is None or (bottom >= 0 and top <= 1 and not case.backward):
        return None
    return Advice(
        "bce-not-probabilities",
        f"{shown(case.op)} needs probabilities in [0, 1]: input min {say(bottom)}, max {say(top)}"
        f"{then(case)}.",
        case.words("bce-from-logits"),
    )


def nothing_to_average(case: Case) -> Advice | None:
    """The mean over targets that are all ignored is 0 / 0."""
    if case.kind is not Bad.NAN or case.backward:
        return None
    return Advice(
        "all-targets-ignored",
        f"{shown(case.op)} averages over the targets that count, and there is none: every target "
        f"is ignore_index (or every weight is 0), so 0 / 0{then(case)}.",
        'skip such batches, or reduction="sum" divided by max(count, 1)',
    )


def infinite_logits(case: Case) -> Advice | None:
    """A cross entropy of logits subtracts their maximum, and multiplies with the labels."""
    held = [t.stats for t in case.inputs[:1] if t.stats is not None]
    infs = sum(stats.posinf + stats.neginf for stats in held)
    if case.kind is not Bad.NAN or not infs:
        return None
    return Advice(
        "softmax-of-inf",
        f"{shown(case.op)} read {infs} inf among its logits: inf - inf, or a label of 0 times "
        f"-inf, is nan{then(case)}.",
        f"{case.words('finite-mask')}, and never mask a class that is a target",
    )


def impossible_target(case: Case) -> Advice | None:
    """The log-probability of a target that cannot occur."""
    if case.kind is not Bad.INF:
        return None
    return Advice(
        "impossible-target",
        f"{shown(case.op)} picks the log-probability of a class whose probability is 0"
        f"{then(case)}: a masked class is a target.",
        "never mask a class that is a target: check mask and labels, or label smoothing",
    )


def squared_error_overflow(case: Case) -> Advice | None:
    """The square of a large error."""
    limit = case.limits
    top = largest([case.read(0), case.read(1)])
    if case.kind is not Bad.INF or limit is None:
        return None
    return Advice(
        "loss-overflow",
        f"{shown(case.op)} squares the error: values up to {say(top)}, and {say(limit.sqrt_limit)} "
        f"squares past the range of {case.dtype}{then(case)}.",
        f"normalise the targets, use {case.words('huber')}, or compute the loss in float32",
    )


def ctc_too_short(case: Case) -> Advice | None:
    """A target that does not fit into its input has probability 0."""
    return Advice(
        "ctc-impossible-alignment",
        f"{shown(case.op)} has no alignment for a target longer than its input: -log(0) = inf"
        f"{then(case)}.",
        case.words("ctc"),
    )


def logarithm_inside(case: Case) -> Advice | None:
    """Losses that take a logarithm of an input (variance, rate, target)."""
    bottoms = [bottom for i in range(len(case.inputs)) if (bottom := low(case.read(i))) is not None]
    return Advice(
        "loss-log-domain",
        f"{shown(case.op)} takes the logarithm of an input; the smallest input is "
        f"{say(min(bottoms, default=None))}{then(case)}.",
        f"clamp what goes into the logarithm: {case.words('clamp-logarithms')}",
    )


RULES: Table = {
    "binary_cross_entropy": (probabilities_out_of_range, logarithm_inside),
    "nll_loss nll_loss_forward nll_loss2d nll_loss2d_forward cross_entropy cross_entropy_loss": (
        nothing_to_average,
        impossible_target,
    ),
    "sparse_softmax_cross_entropy_with_logits softmax_cross_entropy_with_logits": (
        infinite_logits,
        impossible_target,
    ),
    "mse_loss huber_loss smooth_l1_loss l1_loss": (squared_error_overflow,),
    "ctc_loss _ctc_loss cudnn_ctcloss": (ctc_too_short,),
    "kl_div poisson_nll_loss gaussian_nll_loss": (logarithm_inside,),
}
