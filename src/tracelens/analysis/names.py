"""Op names, made comparable across frameworks and variants."""

from __future__ import annotations

import re
from functools import lru_cache

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_DIMENSIONS = re.compile(r"(?<=\d)D(?=[A-Z]|$)")
_VERSION = re.compile(r"_?v\d+$")
_TENSORFLOW = re.compile(r"[A-Z][A-Za-z0-9]*$")
_BACKWARD = re.compile(r"_?(backward|grad)(_?\d+|_input|_weight|_bias)?$")


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


FEED = "feed"
"""Stands in for what a session is fed with."""

BATCH_OPS = words(
    f"DataLoader step_input {FEED} IteratorGetNext IteratorGetNextSync IteratorGetNextAsOptional "
    "OptionalGetValue"
)
"""What hands over a batch, the arguments of a decorated step, or what a session is fed."""

FILLS = words(
    "full full_like new_full fill masked_fill fill_diagonal index_fill constant_pad_nd pad "
    "scalar_tensor tensor lift_fresh where const constant zeros ones pad_v2"
)
"""Ops that write a constant of the program: a non-finite value of theirs was asked for."""

WHOLE_FILLS = words("full full_like new_full fill scalar_tensor")
"""Fills that keep nothing of the tensor they are given first."""

RUNNING_STATISTICS = dict.fromkeys(
    words(
        "native_batch_norm _native_batch_norm_legit _batch_norm_with_update cudnn_batch_norm "
        "miopen_batch_norm batch_norm"
    ),
    slice(3, 5),
)
"""Inputs that an op updates from its first input: bad ones beside a bad first are its doing."""

FINITE_FILLS = words(
    "zeros zeros_like new_zeros zero ones ones_like new_ones arange range linspace logspace eye "
    "randint randperm range lin_space one_hot random_uniform truncated_normal "
    "random_standard_normal stateless_random_uniform stateless_random_normal "
    "stateless_truncated_normal"
)
"""Ops whose output is finite whatever they are given."""

PREDICATES = words(
    "isnan isinf isfinite isneginf isposinf lt gt eq ne ge le less greater equal not_equal "
    "less_equal greater_equal logical_not logical_and logical_or bitwise_not bitwise_and "
    "bitwise_or any all argmax argmin shape shape_n size rank nonzero _local_scalar_dense item "
    "approximate_equal in_top_k check_numerics debug_numeric_summary assert"
)
"""Ops that only look at a value: their finite output hides nothing."""

MASKS = words(
    "where nan_to_num clamp clamp_min clamp_max clip clip_by_value max min maximum "
    "minimum amax amin fmax fmin relu relu6 hardtanh masked_fill masked_select masked_scatter "
    "index index_put index_select index_fill gather scatter select slice narrow topk sort "
    "threshold nansum nanmean nanmedian copy fill zero zeros_like tanh sigmoid reciprocal div "
    "exp softmax _softmax log_softmax _log_softmax logsumexp threshold_backward nll_loss "
    "nll_loss_forward nll_loss_backward embedding nan_to_num_backward erf atan "
    "multiply_no_nan mul_no_nan div_no_nan dynamic_partition gather_nd strided_slice max_pool "
    "max_pool3d softplus"
)
"""Ops that can turn non-finite inputs into finite outputs."""

NAN_OF_INF = words(
    "sin cos frac hardswish hardswish_backward hardsigmoid_backward sigmoid_backward "
    "tanh_backward softsign leaky_relu leaky_relu_backward hardtanh_backward tanh_grad "
    "sigmoid_grad softsign_grad leaky_relu_grad elu_grad selu_grad softmax log_softmax"
)
"""Ops that keep finite inputs finite, but can make a NaN of an Inf (``sin(inf)``, ``0 * inf``)."""


_PICKS = words(
    "index index_select gather gather_nd take take_along_dim embedding embedding_bag masked_select "
    "embedding_dense_backward"
)
_PUTS = words(
    "index_put _index_put_impl index_add index_copy index_reduce scatter scatter_add "
    "scatter_reduce masked_scatter put"
)

_SAME = {
    "mat_mul": "matmul", "batch_mat_mul": "bmm", "real_div": "div", "truncate_div": "div",
    "select": "where", "concat": "cat", "pack": "stack", "unpack": "unbind", "is_nan": "isnan",
    "is_inf": "isinf", "is_finite": "isfinite", "arg_max": "argmax", "arg_min": "argmin",
    "top_k": "topk", "clip_by_value": "clamp", "bias_add": "add", "resource_gather": "gather",
    "resource_gather_nd": "gather_nd", "depthwise_conv2d_native": "conv2d", "less": "lt",
    "greater": "gt", "not_equal": "ne", "less_equal": "le", "greater_equal": "ge",
    "tensor_scatter_update": "index_put", "tensor_scatter_add": "index_add",
    "conv2d_backprop_input": "conv2d_backward", "conv2d_backprop_filter": "conv2d_backward",
    "conv3d_backprop_input": "conv3d_backward", "conv3d_backprop_filter": "conv3d_backward",
    "inv": "reciprocal", "inv_grad": "reciprocal_grad",
}  # fmt: skip
"""TensorFlow's names and the ones used here for the same op."""


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
    if name == "scatter_nd":
        return position != 1
    return name == "where" and position == 0 and count > 1


@lru_cache(maxsize=4096)
def framework_of(name: str) -> str:
    """Return whose op a name is, by its form; empty if it does not tell.

    >>> [framework_of(n) for n in ("aten::exp", "MatMul", "SqrtBackward0", "feed")]
    ['torch', 'tensorflow', 'torch', 'tensorflow']
    """
    if "::" in name or name == "DataLoader" or "Backward" in name:
        return "torch"
    if name == FEED or _TENSORFLOW.match(name):
        return "tensorflow"
    return ""


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """Return the plain lower-case name of an op, without namespace, overload or in-place mark.

    What TensorFlow calls otherwise has one name, and its version is left out.

    >>> [canonical(n) for n in ("aten::exp_", "aten::_foreach_exp", "aten::div.Tensor")]
    ['exp', 'exp', 'div']
    >>> [canonical(n) for n in ("Log1p", "SqrtBackward0", "RsqrtGrad", "aten::_fused_adam_")]
    ['log1p', 'sqrt_backward', 'rsqrt_grad', '_fused_adam']
    >>> [canonical(n) for n in ("MatMul", "BatchMatMulV2", "RealDiv", "SelectV2", "Conv2D")]
    ['matmul', 'bmm', 'div', 'where', 'conv2d']
    """
    plain = name.rsplit("::", 1)[-1].split(".", 1)[0]
    if framework_of(name) == "tensorflow":
        plain = _CAMEL.sub("_", _DIMENSIONS.sub("d", plain)).lower()
        plain = _VERSION.sub("", plain)
        return _SAME.get(plain, plain)
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
