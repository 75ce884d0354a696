"""Op names, made comparable across frameworks and variants."""

from __future__ import annotations

import re
from functools import lru_cache

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_BACKWARD = re.compile(r"_?(backward|grad)(_?\d+|_input|_weight|_bias)?$")


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


BATCH_OPS = frozenset({"DataLoader", "step_input"})
"""Stand-ins for what hands over a batch, or the arguments of a decorated step."""

FILLS = words(
    "full full_like new_full fill masked_fill fill_diagonal index_fill constant_pad_nd pad "
    "scalar_tensor tensor lift_fresh where const constant zeros ones"
)
"""Ops that write a constant of the program: a non-finite value of theirs was asked for."""

WHOLE_FILLS = words("full full_like new_full fill scalar_tensor")
"""Fills that keep nothing of the tensor they are given first."""

FINITE_FILLS = words(
    "zeros zeros_like new_zeros zero ones ones_like new_ones arange range linspace logspace eye "
    "randint randperm"
)
"""Ops whose output is finite whatever they are given."""

PREDICATES = words(
    "isnan isinf isfinite isneginf isposinf lt gt eq ne ge le less greater equal not_equal "
    "less_equal greater_equal logical_not logical_and logical_or bitwise_not bitwise_and "
    "bitwise_or any all argmax argmin arg_max arg_min is_nan is_inf is_finite "
    "shape nonzero _local_scalar_dense item"
)
"""Ops that only look at a value: their finite output hides nothing."""

MASKS = words(
    "where select_v2 nan_to_num clamp clamp_min clamp_max clip clip_by_value max min maximum "
    "minimum amax amin fmax fmin relu relu6 hardtanh masked_fill masked_select masked_scatter "
    "index index_put index_select index_fill gather scatter select slice narrow topk sort "
    "threshold nansum nanmean nanmedian copy fill zero zeros_like tanh sigmoid reciprocal div "
    "exp softmax _softmax log_softmax _log_softmax logsumexp threshold_backward nll_loss "
    "nll_loss_forward nll_loss_backward embedding nan_to_num_backward erf atan "
    "multiply_no_nan mul_no_nan div_no_nan"
)
"""Ops that can turn non-finite inputs into finite outputs."""

NAN_OF_INF = words(
    "sin cos frac hardswish hardswish_backward hardsigmoid_backward sigmoid_backward "
    "tanh_backward softsign leaky_relu leaky_relu_backward hardtanh_backward"
)
"""Ops that keep finite inputs finite, but can make a NaN of an Inf (``sin(inf)``, ``0 * inf``)."""


_PICKS = words(
    "index index_select gather take take_along_dim embedding embedding_bag masked_select "
    "embedding_dense_backward"
)
_PUTS = words(
    "index_put _index_put_impl index_add index_copy index_reduce scatter scatter_add "
    "scatter_reduce masked_scatter put"
)


def holds_indices(name: str, position: int, count: int) -> bool:
    """Tell whether an op's input holds indices or a mask, which are never non-finite.

    Guard level keeps no dtype of an op that made nothing bad, so the position has to tell.

    Args:
        name: canonical name of the op.
        position: which of its tensor inputs.
        count: how many it has.

    >>> [holds_indices("index", i, 2) for i in range(2)]
    [False, True]
    >>> [holds_indices("index_put", i, 4) for i in range(4)]
    [False, True, True, False]
    >>> [holds_indices("where", i, 3) for i in range(3)]
    [True, False, False]
    """
    if name in _PICKS:
        return position > 0
    if name in _PUTS:
        return 0 < position < max(2, count - 1)
    if name in ("masked_fill", "index_fill"):
        return position == 1
    return name == "where" and position == 0 and count > 1


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """Return the plain lower-case name of an op, without namespace, overload or in-place mark.

    >>> [canonical(n) for n in ("aten::exp_", "aten::_foreach_exp", "aten::div.Tensor")]
    ['exp', 'exp', 'div']
    >>> [canonical(n) for n in ("Log1p", "SqrtBackward0", "RsqrtGrad", "aten::_fused_adam_")]
    ['log1p', 'sqrt_backward', 'rsqrt_grad', '_fused_adam']
    """
    plain = name.rsplit("::", 1)[-1].split(".", 1)[0]
    if any(letter.isupper() for letter in plain):
        plain = _CAMEL.sub("_", plain)
    plain = plain.lower()
    plain = re.sub(r"_backward\d+$", "_backward", plain)
    if not plain.startswith("__"):
        plain = plain.rstrip("_") or plain
    return plain.removeprefix("_foreach_")


@lru_cache(maxsize=4096)
def forward_name(name: str) -> str:
    """Return the canonical name without a backward ending.

    >>> forward_name("SqrtBackward0"), forward_name("aten::_softmax_backward_data")
    ('sqrt', '_softmax')
    """
    plain = canonical(name).removesuffix("_data")
    return _BACKWARD.sub("", plain) or plain


def display(name: str) -> str:
    """Return the name as shown to a person: without the namespace.

    >>> display("aten::exp"), display("MatMul")
    ('exp', 'MatMul')
    """
    return name.rsplit("::", 1)[-1]
