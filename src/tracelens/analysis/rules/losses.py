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
        "binary_cross_entropy_with_logits(logits, target) instead of BCE after a sigmoid",
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
        "normalise the targets, use huber_loss, or compute the loss in float32",
    )


def ctc_too_short(case: Case) -> Advice | None:
    """A target that does not fit into its input has probability 0."""
    return Advice(
        "ctc-impossible-alignment",
        f"{shown(case.op)} has no alignment for a target longer than its input: -log(0) = inf"
        f"{then(case)}.",
        "torch.nn.CTCLoss(zero_infinity=True), and check input_lengths against target_lengths",
    )


def logarithm_inside(case: Case) -> Advice | None:
    """Losses that take a logarithm of an input (variance, rate, target)."""
    bottoms = [bottom for i in range(len(case.inputs)) if (bottom := low(case.read(i))) is not None]
    return Advice(
        "loss-log-domain",
        f"{shown(case.op)} takes the logarithm of an input; the smallest input is "
        f"{say(min(bottoms, default=None))}{then(case)}.",
        "clamp what goes into the logarithm: var.clamp_min(1e-6), rate.clamp_min(1e-8), "
        "target.clamp_min(0)",
    )


RULES: Table = {
    "binary_cross_entropy": (probabilities_out_of_range, logarithm_inside),
    "nll_loss nll_loss_forward nll_loss2d nll_loss2d_forward cross_entropy cross_entropy_loss "
    "sparse_softmax_cross_entropy_with_logits": (nothing_to_average, impossible_target),
    "mse_loss huber_loss smooth_l1_loss l1_loss": (squared_error_overflow,),
    "ctc_loss _ctc_loss": (ctc_too_short,),
    "kl_div poisson_nll_loss gaussian_nll_loss": (logarithm_inside,),
}
