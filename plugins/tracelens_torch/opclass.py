"""What kind of op an aten name is: whether its output can be bad when its inputs are not.

Names are matched without namespace, overload, ``_foreach_`` prefix, ``_copy``/``_out`` suffix
and the trailing underscore of in-place forms. An op that is in no set is checked.
"""

from __future__ import annotations

from functools import lru_cache

from tracelens.events import OpFlag

HARMLESS = frozenset(
    """
    relu relu6 hardtanh hardtanh_backward threshold threshold_backward leaky_relu
    leaky_relu_backward clamp clamp_min clamp_max clip abs neg negative positive sign sgn signbit
    ceil floor round trunc frac fix heaviside relu_backward
    sigmoid sigmoid_backward tanh tanh_backward hardsigmoid hardsigmoid_backward hardswish
    sin cos atan softsign erf
    cat concat concatenate stack hstack vstack dstack where masked_select masked_scatter
    gather index index_select take take_along_dim embedding index_copy
    scatter slice_scatter select_scatter diagonal_scatter as_strided_scatter
    flip roll rot90 repeat repeat_interleave tile clone contiguous copy _to_copy
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d pad slice_backward select_backward unfold_backward diagonal_backward
    value_selecting_reduction_backward max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
    max_pool3d_with_indices max_pool2d_with_indices_backward max_pool3d_with_indices_backward
    adaptive_max_pool2d adaptive_max_pool3d max_unpool2d channel_shuffle pixel_shuffle
    max min amax amin aminmax sort msort argsort topk kthvalue median nanmedian mode cummax cummin
    argmax argmin maximum minimum fmax fmin
    native_dropout_mask bernoulli tril triu tril_indices triu_indices diag diag_embed
    eq ne lt le gt ge equal isnan isinf isfinite isposinf isneginf isclose allclose
    logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor
    any all nonzero count_nonzero unique unique2 _unique2 searchsorted bucketize histc bincount
    one_hot nan_to_num complex real imag view_as_real view_as_complex
    _local_scalar_dense item is_nonzero set_ detach alias lift lift_fresh zeros_like_ resolve_conj
    resolve_neg pin_memory unique_consecutive isin nll_loss_backward nll_loss2d_backward
    """.split()
)

GARBAGE = frozenset(
    """
    empty empty_like empty_strided new_empty new_empty_strided empty_permuted resize resize_as
    empty_quantized
    """.split()
)

CONSTANT = frozenset(
    """
    fill full full_like new_full zeros zeros_like new_zeros ones ones_like new_ones zero
    scalar_tensor masked_fill constant_pad_nd arange linspace range eye fill_diagonal index_fill
    """.split()
)

RANDOM = frozenset(
    """
    rand randn rand_like randn_like randint randint_like randperm normal uniform random
    exponential log_normal cauchy geometric multinomial poisson
    """.split()
)
"""Draws: ``rand`` and friends are finite, the last row need not be and is checked."""

_FINITE_DRAWS = RANDOM - {"log_normal", "cauchy", "exponential", "normal", "poisson"}


def base_name(name: str) -> str:
    """Return the name by which the sets know an op.

    Examples:
        >>> base_name("aten::_foreach_add_.Scalar")
        'add'
        >>> base_name("aten::relu_")
        'relu'
    """
    plain = name.rpartition("::")[2].partition(".")[0]
    plain = plain.removeprefix("_foreach_")
    if plain in HARMLESS or plain in GARBAGE or plain in CONSTANT:
        return plain
    plain = plain.removesuffix("_out")
    return plain[:-1] if plain.endswith("_") and not plain.endswith("__") else plain


@lru_cache(maxsize=4096)
def classify(name: str) -> OpFlag:
    """Return HARMLESS, GARBAGE or CONSTANT, or no flag for an op that must be checked.

    Args:
        name: as the dispatcher reports it, with or without namespace and overload.
    """
    if "::" in name and not name.startswith("aten::"):
        return OpFlag(0)
    base = base_name(name)
    if base in GARBAGE:
        return OpFlag.GARBAGE
    if base in CONSTANT:
        return OpFlag.CONSTANT
    if base in HARMLESS or base in _FINITE_DRAWS:
        return OpFlag.HARMLESS
    return OpFlag(0)
