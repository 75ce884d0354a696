"""Sums and products: matrix products, convolutions, reductions and plain arithmetic."""

from __future__ import annotations

from tracelens.analysis.dtypes import limits
from tracelens.analysis.rules.case import (
    Advice,
    Case,
    Table,
    growth,
    magnitude,
    say,
    shown,
    then,
)
from tracelens.analysis.state import Bad
from tracelens.events import TensorRecord

_PRODUCTS = (
    "mm addmm bmm baddbmm addbmm matmul linear addmv mv dot vdot inner outer ger einsum "
    "tensordot bilinear mat_mul batch_mat_mul batch_mat_mul_v2 _addmm_activation mkldnn_linear "
    "convolution _convolution conv1d conv2d conv3d mkldnn_convolution thnn_conv2d "
    "_slow_conv2d_forward slow_conv3d_forward cudnn_convolution conv_transpose2d "
    "_conv_depthwise2d conv2_d conv3_d conv2d_native convolution_overrideable"
)
_SUMS = "sum mean cumsum add sub rsub add_n add_v2 addcmul lerp mul multiply trace avg_pool2d"
_CUMULATIVE = "cumprod prod cumsum logcumsumexp"


# Measured values seldom come within 1 % of the range by themselves; finfo.max is a common stand-in.
_AT_THE_EDGE = 0.99


def _half(dtype: str) -> bool:
    return dtype in ("float16", "float8_e5m2", "float8_e4m3fn")


def _remedy(case: Case) -> str:
    if _half(case.dtype):
        return (
            "use bfloat16 (same range as float32) or run this part in float32: "
            "with torch.autocast(device, enabled=False): f(x.float()), or scale the input down"
        )
    return (
        "find what let the values grow: lower the learning rate, clip gradients "
        "(torch.nn.utils.clip_grad_norm_), normalise the inputs"
    )


def _inner_size(a: TensorRecord) -> int | None:
    return a.shape[-1] if a.shape else None


def product_overflow(case: Case) -> Advice | None:
    """A sum of products beyond the range; ``K * max|a| * max|b|`` bounds it."""
    limit = case.limits
    if case.kind is not Bad.INF or limit is None:
        return None
    tops = [top for t in case.inputs if (top := magnitude([t])) is not None]
    told = " and ".join(say(top) for top in sorted(tops, reverse=True)[:2])
    measured = f"inputs of magnitude up to {told}" if told else "its inputs"
    inner = _inner_size(case.inputs[0]) if case.inputs else None
    over = f", summed over {inner} terms," if inner and "conv" not in case.name else ""
    return Advice(
        "product-overflow",
        f"{shown(case.op)} overflows {case.dtype}: {measured}{over} pass the limit "
        f"{say(limit.largest)}{then(case)}." + growth(case),
        _remedy(case),
    )


def inf_in_product(case: Case) -> Advice | None:
    """A product or sum that turned an Inf it was given into a NaN."""
    held = [t.stats for t in case.inputs if t.stats is not None]
    infs = sum(stats.posinf + stats.neginf for stats in held)
    if case.kind is not Bad.NAN or not infs:
        return None
    how = "0 * inf" if case.name in ("mul", "multiply") else "inf - inf"
    if case.name in _PRODUCTS.split():
        how = "0 * inf, or inf - inf in the sum,"
    return Advice(
        "inf-arithmetic",
        f"{shown(case.op)} read {infs} inf among its inputs: {how} = nan{then(case)}.",
        "remove the infinities before this line: torch.where(mask, x, 0) instead of x * mask, "
        "and masked_fill with torch.finfo(x.dtype).min instead of -inf",
    )


def sum_overflow(case: Case) -> Advice | None:
    """Plain arithmetic beyond the range."""
    limit = case.limits
    if case.kind is not Bad.INF or limit is None:
        return None
    top = case.largest_input()
    if top is not None and top >= _AT_THE_EDGE * limit.largest and not _half(case.dtype):
        return Advice(
            "value-at-the-limit",
            f"{shown(case.op)} read {say(top)}, which is (almost) the largest {case.dtype}: a "
            f"stand-in for a missing value, or the result of an earlier blow-up{then(case)}."
            + growth(case),
            "replace stand-ins when the data is loaded: x = torch.where(x.abs() < 1e30, x, 0)",
        )
    return Advice(
        "arithmetic-overflow",
        f"{shown(case.op)} overflows {case.dtype}: largest input {say(top)}, limit "
        f"{say(limit.largest)}{then(case)}." + growth(case),
        _remedy(case),
    )


def cumulative_overflow(case: Case) -> Advice | None:
    """A running product (or sum) that grew past the range, or divides by a zero in backward."""
    limit = case.limits
    if case.backward and "prod" in case.subject:
        return Advice(
            "cumulative-gradient",
            f"the gradient of {case.subject} divides by the elements, and one is 0{then(case)}.",
            "torch.exp(torch.cumsum(torch.log(x.clamp_min(1e-12)), dim)) for positive x",
        )
    if case.kind is not Bad.INF or limit is None:
        return None
    top = case.largest_input()
    product = "prod" in case.subject
    grows = "a product of many factors" if product else "a running total"
    return Advice(
        "cumulative-overflow",
        f"{shown(case.op)} is {grows}: with elements up to {say(top)} it leaves the range of "
        f"{case.dtype} (limit {say(limit.largest)}){then(case)}.",
        "work with logarithms: torch.cumsum(torch.log(x), dim), or in float64"
        if product
        else f"accumulate in a wider dtype: torch.{case.subject}(x, dim, dtype=torch.float32)"
        if _half(case.dtype)
        else _remedy(case),
    )


def narrowing_cast(case: Case) -> Advice | None:
    """A cast to a dtype with a smaller range."""
    read = case.read()
    to = case.out.dtype
    limit = limits(to)
    if case.kind is not Bad.INF or limit is None or (read is not None and read.dtype == to):
        return None
    top = magnitude([read])
    return Advice(
        "cast-overflow",
        f"the cast from {read.dtype if read and read.dtype else 'a wider dtype'} to {to} loses "
        f"range: largest magnitude {say(top)}, limit {say(limit.largest)}{then(case)}.",
        "use bfloat16 instead of float16, scale the values first, or "
        f"x.clamp(-{say(limit.largest)}, {say(limit.largest)}) before the cast",
    )


RULES: Table = {
    _CUMULATIVE: (cumulative_overflow, sum_overflow),
    _PRODUCTS: (inf_in_product, product_overflow),
    _SUMS: (inf_in_product, sum_overflow),
    "to _to_copy copy half type_as cast _autocast_to_reduced_precision": (
        narrowing_cast,
        sum_overflow,
    ),
}
