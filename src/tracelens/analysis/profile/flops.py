"""FLOP and bytes of ops, from the shapes of their arguments.

A multiply-add counts as 2 FLOP. Bytes are the least that must move: each input read once, each
output written once; what a cache saves or a bad access pattern costs is not in it. Matrix products,
convolutions and attention follow torch.utils.flop_counter, except that causal attention counts
half (as AMD's TraceLens) and a bias counts one addition per output element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from tracelens.analysis.names import canonical, words
from tracelens.analysis.profile.opcall import OpCall, Shape, broadcast, numel


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of an op has to do.

    Attributes:
        kind: ``GEMM``, ``CONV``, ``SDPA``, ``NORM``, ``EMBEDDING``, ``ELEMENTWISE``, ``REDUCE``,
            ``COPY`` or ``OPTIMIZER``.
        flops: floating-point operations.
        bytes: bytes read and written.
        dtype: element type of its main input.
    """

    kind: str
    flops: int
    bytes: int
    dtype: str


HEAVY = ("GEMM", "CONV", "SDPA", "NORM", "EMBEDDING", "OPTIMIZER")
"""Kinds that stand for what they call; of the others the innermost ops count."""

Formula = Callable[[OpCall], Work | None]


def work_of(name: str, call: OpCall) -> Work | None:
    """Return what a call has to do; ``None`` if no formula fits its name and arguments.

    Examples:
        >>> call = OpCall([[8944, 2816], [2816, 1024]], ["c10::BFloat16"] * 2, [], [])
        >>> work_of("aten::mm", call).flops
        51581550592
    """
    formula = FORMULAS.get(canonical(name))
    return formula(call) if formula is not None else None


def _gemm(call: OpCall, a: Shape, b: Shape, at: int = 0, bias: int = 0) -> Work | None:
    """``[..., M, K] @ [..., K, N]``, the leading dimensions broadcast."""
    if not a or not b:
        return None
    left = a if len(a) > 1 else [1, *a]
    right = b if len(b) > 1 else [*b, 1]
    if left[-1] != right[-2]:
        return None
    batch = prod(broadcast([left[:-2], right[:-2]]))
    m, k, n = left[-2], left[-1], right[-1]
    size = call.item_size(at)
    out = batch * m * n
    moved = numel(a) + numel(b) + out
    return Work("GEMM", 2 * out * k + bias * out, moved * size + bias * n * size, call.dtype(at))


def _matmul(call: OpCall) -> Work | None:
    a, b = call.shape(0), call.shape(1)
    return _gemm(call, a, b) if a is not None and b is not None else None


def _addmm(call: OpCall) -> Work | None:
    a, b = call.shape(1), call.shape(2)
    return _gemm(call, a, b, 1, bias=1) if a is not None and b is not None else None


def _linear(call: OpCall) -> Work | None:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None or len(b) != 2:
        return None
    flat = [prod(a[:-1]), a[-1]] if a else a
    return _gemm(call, flat, [b[1], b[0]], bias=int(call.shape(2) is not None))


def _conv_out(input_: Shape, weight: Shape, stride: list[int], padding: list[int],
              dilation: list[int], transposed: bool) -> Shape | None:  # fmt: skip
    spatial = len(weight) - 2
    if len(input_) != spatial + 2 or spatial < 1:
        return None
    s, p, d = (v * spatial if len(v) == 1 else v for v in (stride, padding, dilation))
    if not len(s) == len(p) == len(d) == spatial or 0 in s:
        return None
    sizes = []
    for at in range(spatial):
        reach = d[at] * (weight[at + 2] - 1)
        if transposed:
            sizes.append((input_[at + 2] - 1) * s[at] - 2 * p[at] + reach + 1)
        else:
            sizes.append((input_[at + 2] + 2 * p[at] - reach - 1) // s[at] + 1)
    return sizes if all(size > 0 for size in sizes) else None


def _conv(stride: int, padding: int, dilation: int, transposed: int | None = None) -> Formula:
    """Return the formula of a convolution whose arguments stand at these positions."""

    def formula(call: OpCall) -> Work | None:
        x, w = call.shape(0), call.shape(1)
        if x is None or w is None or len(w) < 3 or len(x) != len(w):
            return None
        turned = transposed is not None and call.flag(transposed)
        out = call.output
        if out is None or len(out) != len(x):
            given = [call.numbers(at) for at in (stride, padding, dilation)]
            s, p, d = (
                value or default for value, default in zip(given, ([1], [0], [1]), strict=True)
            )
            if turned or given[0] is not None or not call.values:
                sizes = _conv_out(x, w, s, p, d, turned)
            else:
                return None
            if sizes is None:
                return None
            # A transposed weight is [in, out / groups, ...]; the factor below needs no group count.
            out = [x[0], w[0] if not turned else w[1], *sizes]
        return _conv_work(call, x, w, out, turned)

    return formula


def _conv_work(call: OpCall, x: Shape, w: Shape, out: Shape, turned: bool) -> Work:
    taps = prod(w[1:])
    flops = 2 * (numel(x) if turned else numel(out)) * taps
    moved = numel(x) + numel(w) + numel(out)
    return Work("CONV", flops, moved * call.item_size(), call.dtype())


def _conv_backward(call: OpCall) -> Work | None:
    g, x, w = call.shape(0), call.shape(1), call.shape(2)
    if g is None or x is None or w is None or len(w) < 3:
        return None
    mask = call.value(10).lower()
    grads = mask.count("true", 0, mask.rfind(",")) if "true" in mask else 2
    turned = call.flag(7)
    one = 2 * (numel(x) if turned else numel(g)) * prod(w[1:])
    moved = numel(g) + 2 * numel(x) + 2 * numel(w)
    return Work("CONV", grads * one, moved * call.item_size(), call.dtype())


def _attention(causal: int | None, *, backward: bool = False, head_dim: int = 1) -> Formula:
    """Return the formula of attention of query, key, value ``[B, H, N, D]``.

    Forward has two matrix products of the size of the scores, backward five (one of them repeats
    the forward's; FlashAttention-2, section 3.2). ``head_dim`` is 2 for ``[B, N, H, D]``.
    """
    first = int(backward)

    def formula(call: OpCall) -> Work | None:
        q, k, v = (call.shape(first + at) for at in range(3))
        if q is None or k is None or v is None or not len(q) == len(k) == len(v) == 4:
            return None
        heads, rows, columns = q[head_dim], q[3 - head_dim], k[3 - head_dim]
        scores = q[0] * heads * rows * columns
        flops = 2 * scores * (q[3] + v[3])
        if backward:
            flops = 2 * scores * (3 * q[3] + 2 * v[3])
        if causal is not None and call.flag(causal):
            flops //= 2
        out = numel(q) // max(q[3], 1) * v[3]
        moved = (numel(q) + numel(k) + numel(v) + out) * (2 if backward else 1)
        return Work("SDPA", flops, moved * call.item_size(first), call.dtype(first))

    return formula


def _per_element(kind: str, flops: int, passes: float, at: int = 0) -> Formula:
    """Return the formula of what does ``flops`` per element of an argument in so many passes."""

    def formula(call: OpCall) -> Work | None:
        x = call.shape(at)
        if x is None:
            return None
        n = numel(x)
        return Work(kind, flops * n, int(passes * n * call.item_size(at)), call.dtype(at))

    return formula


def _elementwise(flops: int = 1) -> Formula:
    """Return the formula of what reads its tensors and writes what they broadcast to."""

    def formula(call: OpCall) -> Work | None:
        tensors = call.tensors
        if not tensors:
            return None
        lists = any(s and isinstance(s, list) and all(isinstance(i, list) for i in s)
                    for s in call.shapes)  # fmt: skip
        out = 0 if lists else numel(broadcast([shape for shape, _ in tensors]))
        read = sum(numel(shape) * size for shape, size in tensors)
        written = read if lists else out * max(size for _, size in tensors)
        work = sum(numel(shape) for shape, _ in tensors) if lists else out
        return Work("ELEMENTWISE", flops * work, read + written, call.dtype())

    return formula


def _copy(call: OpCall) -> Work | None:
    to, source = call.shape(0), call.shape(1)
    if to is None:
        return None
    read = numel(source) * call.item_size(1) if source is not None else 0
    return Work("COPY", 0, numel(to) * call.item_size(0) + read, call.dtype())


def _gather_all(call: OpCall) -> Work | None:
    if "TensorList" in call.dtypes:
        return None  # PyTorch's profiler does not tell the element type of a list
    moved = 2 * sum(numel(shape) * size for shape, size in call.tensors)
    return Work("COPY", 0, moved, call.dtype()) if moved else None


def _embedding(call: OpCall) -> Work | None:
    weight, index = call.shape(0), call.shape(1)
    if weight is None or index is None or len(weight) != 2:
        return None
    rows = numel(index)
    moved = rows * call.item_size(1) + 2 * rows * weight[1] * call.item_size(0)
    return Work("EMBEDDING", 0, moved, call.dtype())


def _embedding_backward(call: OpCall) -> Work | None:
    grad, index = call.shape(0), call.shape(1)
    if grad is None or index is None:
        return None
    moved = 3 * numel(grad) * call.item_size(0) + numel(index) * call.item_size(1)
    return Work("EMBEDDING", numel(grad), moved, call.dtype())


def _fused_optimizer(call: OpCall) -> Work | None:
    """Parameters, gradients and moments of unknown type are taken for float32."""
    n = sum(numel(shape) for shape, _ in call.tensors)
    moved = sum(numel(shape) * size for shape, size in call.tensors)
    # Parameter, gradient and two moments are read, all but the gradient written; 12 FLOP for each
    # parameter, of which the lists hold four tensors.
    return Work("OPTIMIZER", 3 * n, moved * 7 // 4, call.dtype()) if n else None


def _named(names: str, formula: Formula) -> dict[str, Formula]:
    return dict.fromkeys(words(names), formula)


FORMULAS: dict[str, Formula] = {
    **_named("mm bmm matmul _int_mm mv dot _scaled_mm", _matmul),
    **_named("addmm baddbmm addmv addbmm _addmm_activation", _addmm),
    "linear": _linear,
    **_named("convolution _convolution convolution_overrideable", _conv(3, 4, 5, 6)),
    **_named("conv1d conv2d conv3d", _conv(3, 4, 5)),
    **_named("cudnn_convolution cudnn_convolution_relu", _conv(3, 2, 4)),
    **_named("miopen_convolution mkldnn_convolution miopen_depthwise_convolution", _conv(4, 3, 5)),
    **_named("convolution_backward convolution_backward_overrideable", _conv_backward),
    "_scaled_dot_product_flash_attention": _attention(4),
    "_scaled_dot_product_efficient_attention": _attention(6),
    "_scaled_dot_product_cudnn_attention": _attention(6),
    "_scaled_dot_product_flash_attention_for_cpu": _attention(4),
    "_scaled_dot_product_attention_math": _attention(5),
    "_scaled_dot_product_flash_attention_backward": _attention(11, backward=True),
    "_scaled_dot_product_efficient_attention_backward": _attention(11, backward=True),
    "_scaled_dot_product_cudnn_attention_backward": _attention(14, backward=True),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention(7, backward=True),
    # Mean, variance, normalise, scale and shift; statistics need a second pass over the input.
    **_named("native_layer_norm native_group_norm native_batch_norm cudnn_batch_norm "
             "miopen_batch_norm _native_batch_norm_legit _batch_norm_with_update _fused_rms_norm",
             _per_element("NORM", 8, 2)),
    **_named("native_layer_norm_backward native_group_norm_backward native_batch_norm_backward "
             "cudnn_batch_norm_backward miopen_batch_norm_backward _fused_rms_norm_backward",
             _per_element("NORM", 11, 3)),
    "embedding": _embedding,
    **_named("embedding_dense_backward", _embedding_backward),
    **_named("_fused_adam _fused_adamw _fused_sgd _fused_adagrad", _fused_optimizer),
    # Largest, difference, exponential, sum, quotient.
    **_named("_softmax _log_softmax", _per_element("REDUCE", 5, 2)),
    **_named("_softmax_backward_data _log_softmax_backward_data", _per_element("REDUCE", 4, 3)),
    **_named("sum mean amax amin max min prod norm linalg_vector_norm argmax argmin all any cumsum "
             "logsumexp var std var_mean nansum", _per_element("REDUCE", 1, 1)),
    "copy": _copy,
    **_named("cat stack", _gather_all),
    **_named("fill zero", _per_element("COPY", 0, 1)),
    **_named("add sub mul div neg abs sign clamp clamp_min clamp_max maximum minimum relu "
             "threshold_backward leaky_relu hardtanh where masked_fill eq ne lt le gt ge rsub "
             "bitwise_and bitwise_or logical_and logical_or logical_not bitwise_not remainder "
             "lerp addcmul addcdiv native_dropout native_dropout_backward bernoulli isnan isinf "
             "reciprocal sqrt rsqrt square floor ceil round trunc _fused_dropout tril triu",
             _elementwise()),
    # Transcendental functions count as 1 each like the others: moving the data binds them anyway.
    **_named("exp log log2 log1p expm1 sin cos tan tanh sigmoid erf pow silu gelu mish softplus "
             "elu tanh_backward sigmoid_backward silu_backward gelu_backward hardswish selu",
             _elementwise()),
}  # fmt: skip
"""Canonical op name -> its formula."""
