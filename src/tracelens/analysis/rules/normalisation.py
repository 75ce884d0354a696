"""Variances and normalisation layers: constant input, groups of one, empty reductions."""

from __future__ import annotations

from tracelens.analysis.rules.case import Advice, Case, Table, low, say, shown, then
from tracelens.analysis.rules.case import high as highest
from tracelens.analysis.rules.case import magnitude as largest
from tracelens.analysis.state import Bad

_LAYERS = (
    "batch_norm native_batch_norm _native_batch_norm_legit _batch_norm_impl_index "
    "cudnn_batch_norm _batch_norm_with_update layer_norm native_layer_norm group_norm "
    "native_group_norm instance_norm rms_norm _fused_rms_norm fused_batch_norm"
)


def empty_reduction(case: Case) -> Advice | None:
    """The mean of nothing is 0 / 0."""
    read = case.inputs[0] if case.inputs else None
    if read is None or read.shape is None or 0 not in read.shape or case.backward:
        return None
    return Advice(
        "empty-reduction",
        f"{shown(case.op)} of an empty tensor (shape {list(read.shape)}) is 0 / 0{then(case)}.",
        f"skip it when nothing is selected: {case.words('skip-empty')}",
    )


def variance_of_one(case: Case) -> Advice | None:
    """The unbiased variance divides by ``n - 1``."""
    if case.kind is not Bad.NAN or case.backward:
        return None
    read = case.read()
    if read is not None and read.shape is not None and read.stats is not None:
        outputs = max(case.out.stats.numel if case.out.stats else 1, 1)
        group = read.stats.numel // outputs
        if group > 1:
            return None
    return Advice(
        "variance-of-one",
        f"{shown(case.op)} of a single element divides by n - 1 = 0{then(case)}: a batch (or "
        "group) of one.",
        f"{case.words('biased-variance')}, or skip batches of one: {case.words('drop-last')}",
    )


def constant_input_gradient(case: Case) -> Advice | None:
    """``std`` of a constant has no slope: its gradient divides by ``std = 0``."""
    if not case.backward:
        return None
    return Advice(
        "std-gradient-at-zero",
        f"the gradient of {case.subject} divides by the standard deviation, which is 0 for "
        f"constant values{then(case)}.",
        case.words("safe-std"),
    )


def negative_variance(case: Case) -> Advice | None:
    """A running variance below 0: the square root of the update is NaN."""
    if "batch_norm" not in case.subject or case.kind is not Bad.NAN:
        return None
    # Weight, bias, running mean, running variance follow the input; only the last must be >= 0.
    bottom = low(case.read(4))
    if bottom is None or bottom >= 0:
        return None
    return Advice(
        "negative-running-variance",
        f"{shown(case.op)} takes the square root of a running variance that is negative (min "
        f"{say(bottom)}){then(case)}.",
        case.words("batch-statistics"),
    )


def constant_group(case: Case) -> Advice | None:
    """A normalisation layer without eps, or one whose squares overflow."""
    limit = case.limits
    top = largest([case.read()])
    if limit is not None and top is not None and top > limit.sqrt_limit:
        return Advice(
            "normalisation-overflow",
            f"{shown(case.op)} squares its input: largest magnitude {say(top)}, and "
            f"{say(limit.sqrt_limit)} is the limit for {case.dtype}{then(case)}.",
            case.words("normalise-wide"),
        )
    read = case.read()
    same = low(read) is not None and low(read) == highest(read)
    told = f"every value is {say(low(read))}" if same else "the values of a group are all the same"
    return Advice(
        "variance-of-zero",
        f"{shown(case.op)} divides by the standard deviation, and {told}: variance 0, with an "
        f"{case.words('eps')} of 0 or one that the dtype rounds to 0{then(case)}.",
        f"{case.words('layer-eps')}, and check for constant features or batches of one",
    )


RULES: Table = {
    "mean nanmean median": (empty_reduction,),
    "var std var_mean std_mean": (
        empty_reduction,
        constant_input_gradient,
        variance_of_one,
        constant_group,
    ),
    _LAYERS: (negative_variance, constant_group),
}
