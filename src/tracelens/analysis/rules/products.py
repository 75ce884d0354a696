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
    "tensordot bilinear _addmm_activation mkldnn_linear depthwise_conv2d_native xla_dot "
    "sparse_tensor_dense_mat_mul sparse_mat_mul xla_conv "
    "convolution _convolution conv1d conv2d conv3d mkldnn_convolution thnn_conv2d "
    "_slow_conv2d_forward slow_conv3d_forward cudnn_convolution conv_transpose2d "
    "_conv_depthwise2d convolution_overrideable"
)
_SUMS = (
    "sum mean cumsum add sub rsub add_n bias_add bias_add_grad addcmul lerp mul multiply trace "
    "avg_pool2d avg_pool avg_pool3d unsorted_segment_sum segment_sum"
)
_CUMULATIVE = "cumprod prod cumsum logcumsumexp"


# Measured values seldom come within 1 % of the range by themselves; finfo.max is a common stand-in.
_AT_THE_EDGE = 0.99


def _half(dtype: str) -> bool:
    return dtype in ("float16", "float8_e5m2", "float8_e4m3fn")


def _remedy(case: Case) -> str:
    if _half(case.dtype):
        return (
            "use bfloat16 (same range as float32) or run this part in float32: "
            f"{case.words('wide-part')}, or scale the input down"
        )
    return (
        "find what let the values grow: lower the learning rate, clip gradients "
        f"({case.words('clip-gradients')}), normalise the inputs"
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
        f"remove the infinities before this line: {case.words('select-not-multiply')}, and "
        f"{case.words('finite-mask')}",
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
            f"replace stand-ins when the data is loaded: {case.words('replace-stand-ins')}",
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
            f"{case.words('product-of-logs')} for positive x",
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
        f"work with logarithms: {case.words('sum-of-logs')}, or in float64"
        if product
        else f"accumulate in a wider dtype: {case.words('wide-sum', name=case.subject)}"
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
    ends = {"low": f"-{say(limit.largest)}", "high": say(limit.largest)}
    bounded = case.words("between", x="x", **ends)
    return Advice(
        "cast-overflow",
        f"the cast from {read.dtype if read and read.dtype else 'a wider dtype'} to {to} loses "
        f"range: largest magnitude {say(top)}, limit {say(limit.largest)}{then(case)}.",
        f"use bfloat16 instead of float16, scale the values first, or {bounded} before the cast",
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
