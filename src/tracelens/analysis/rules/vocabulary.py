"""What to write instead, in the words of each framework.

``PHRASES`` holds a piece of code or of a sentence in each framework's words, side by side, with
the same placeholders. A rule names the phrase and never the framework:
``case.words("at-least", x="x", low="1e-12")``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FRAMEWORKS = ("torch", "tensorflow")
"""The columns of ``PHRASES``; an unknown framework is spoken to in the words of the first."""

PHRASES: Mapping[str, tuple[str, str]] = {
    # Pieces of code
    "function": ("torch.{name}({x})", "tf.math.{name}({x})"),
    "at-least": ("{x}.clamp_min({low})", "tf.maximum({x}, {low})"),
    "at-most": ("{x}.clamp(max={high})", "tf.minimum({x}, {high})"),
    "between": ("{x}.clamp({low}, {high})", "tf.clip_by_value({x}, {low}, {high})"),
    "where": ("torch.where({condition}, {x}, {y})", "tf.where({condition}, {x}, {y})"),
    "power": ("{x}.pow({p})", "tf.pow({x}, {p})"),
    "shifted-power": ("(x + 1e-6).pow(p)", "tf.pow(x + 1e-6, p)"),
    "pow": ("torch.pow({x}, {p})", "tf.pow({x}, {p})"),
    "signed-power": ("torch.sign(x) * x.abs().pow(p)", "tf.sign(x) * tf.pow(tf.abs(x), p)"),
    "magnitude": ("x.abs()", "tf.abs(x)"),
    "to-float32": ("x.float()", "tf.cast(x, tf.float32)"),
    "lowest": ("torch.finfo({x}.dtype).min", "{x}.dtype.min"),
    "all-finite": ("torch.isfinite({x}).all()", "tf.reduce_all(tf.math.is_finite({x}))"),
    "assert-finite": (
        "assert torch.isfinite(x).all()",
        'tf.debugging.assert_all_finite(x, "x")',
    ),
    "nan-to-num": (
        "torch.nan_to_num(x)",
        "tf.where(tf.math.is_finite(x), x, tf.zeros_like(x))",
    ),
    "atan2": ("torch.atan2({y}, {x})", "tf.atan2({y}, {x})"),
    "log-softmax": ("torch.log_softmax(logits, -1)", "tf.nn.log_softmax(logits)"),
    "log-sigmoid": (
        "torch.nn.functional.logsigmoid(logits)",
        "tf.math.log_sigmoid(logits)",
    ),
    "logsumexp": ("torch.logsumexp(x, dim)", "tf.reduce_logsumexp(x, axis)"),
    # Divisions
    "safe-division": (
        "torch.where(y != 0, x / torch.where(y != 0, y, 1), 0)",
        "tf.math.divide_no_nan(x, y)",
    ),
    "both-sides": (" (both sides must be safe)", ", which is 0 there and has no gradient"),
    # Exponentials and logarithms
    "stable-exponentials": (
        "log_softmax, logsumexp, logaddexp, softplus work in log space without overflow",
        "tf.nn.log_softmax, tf.reduce_logsumexp, tf.nn.softplus work in log space without overflow",
    ),
    "stable-logarithms": (
        "log_softmax / logsigmoid if it fits",
        "tf.nn.log_softmax / tf.math.log_sigmoid, or a loss with from_logits=True, if it fits",
    ),
    "safe-logit": (
        "torch.logit(p, eps=1e-6)",
        "tf.clip_by_value(p, 1e-6, 1 - 1e-6) before it",
    ),
    "safe-xlogy": (
        "torch.xlogy(x, y.clamp_min({low}))",
        "tf.math.xlogy(x, tf.maximum(y, {low}))",
    ),
    # Roots and norms
    "variance": ("torch.var", "tf.math.reduce_variance"),
    "norm-by-hand": (
        "torch.sqrt((x * x).sum(-1) + 1e-12)",
        "tf.sqrt(tf.reduce_sum(x * x, -1) + 1e-12)",
    ),
    "unit-vectors": ("F.normalize(x, eps=1e-6)", "tf.math.l2_normalize(x, -1, epsilon=1e-12)"),
    "wide-norm": ("x.float().norm()", "tf.norm(tf.cast(x, tf.float32))"),
    "largest": ("x.abs().max()", "tf.reduce_max(tf.abs(x))"),
    "init-weight": (
        "torch.nn.init.normal_(layer.weight, std=1e-3)",
        'kernel_initializer="glorot_uniform"',
    ),
    # Softmax and masks
    "own-position": (
        "fill with {lowest} instead of -inf and zero those rows afterwards",
        "add -1e9 instead of -inf and zero those rows afterwards (keras.layers.Softmax and "
        "MultiHeadAttention do so when they are given a mask)",
    ),
    "finite-mask": (
        "masked_fill with torch.finfo(x.dtype).min instead of -inf",
        "-1e9 (float16: -6e4) instead of -inf in an additive mask",
    ),
    # Reductions and normalisation
    "skip-empty": (
        "x.mean() if x.numel() else x.sum()",
        "tf.math.divide_no_nan(tf.reduce_sum(x), tf.cast(tf.size(x), x.dtype))",
    ),
    "biased-variance": ("x.var(unbiased=False)", "tf.math.reduce_variance(x)"),
    "drop-last": (
        "DataLoader(..., drop_last=True)",
        "dataset.batch(n, drop_remainder=True)",
    ),
    "safe-std": (
        "torch.sqrt(x.var(unbiased=False) + 1e-8) instead of x.std()",
        "tf.sqrt(tf.math.reduce_variance(x) + 1e-8) instead of tf.math.reduce_std(x)",
    ),
    "batch-statistics": (
        "do not average or extrapolate BatchNorm buffers linearly: running_var.clamp_(min=0), or "
        "recompute them with torch.optim.swa_utils.update_bn",
        "do not average or extrapolate BatchNormalization's moving_variance linearly: keep it at 0 "
        "or more, or recompute it with a pass over the data in training mode",
    ),
    "normalise-wide": (
        "run the normalisation in float32: norm(x.float()).to(x.dtype)",
        'run the normalisation in float32: give the layer dtype="float32"',
    ),
    "layer-eps": (
        "eps=1e-5 (float16: at least 1e-4)",
        "epsilon=1e-3 (Keras' default; float16: at least 1e-4)",
    ),
    # Losses
    "bce-from-logits": (
        "binary_cross_entropy_with_logits(logits, target) instead of BCE after a sigmoid",
        "BinaryCrossentropy(from_logits=True) on the logits instead of a sigmoid before the loss",
    ),
    "sum-reduction": ('reduction="sum"', 'reduction="sum"'),
    "huber": ("huber_loss", "keras.losses.Huber"),
    "ctc": (
        "torch.nn.CTCLoss(zero_infinity=True), and check input_lengths against target_lengths",
        "drop samples whose labels do not fit: label_length + repeats <= logit_length",
    ),
    "clamp-logarithms": (
        "var.clamp_min(1e-6), rate.clamp_min(1e-8), target.clamp_min(0)",
        "tf.maximum(var, 1e-6), tf.maximum(rate, 1e-8), tf.maximum(target, 0.0)",
    ),
    # Products and casts
    "wide-part": (
        "with torch.autocast(device, enabled=False): f(x.float())",
        'tf.cast(x, tf.float32) before it, or dtype="float32" for the layer',
    ),
    "clip-gradients": ("torch.nn.utils.clip_grad_norm_", "clipnorm=1.0 of the optimizer"),
    "select-not-multiply": (
        "torch.where(mask, x, 0) instead of x * mask",
        "tf.where(mask, x, 0.0) instead of x * mask",
    ),
    "replace-stand-ins": (
        "x = torch.where(x.abs() < 1e30, x, 0)",
        "x = tf.where(tf.abs(x) < 1e30, x, 0.0)",
    ),
    "product-of-logs": (
        "torch.exp(torch.cumsum(torch.log(x.clamp_min(1e-12)), dim))",
        "tf.exp(tf.cumsum(tf.math.log(tf.maximum(x, 1e-12)), axis))",
    ),
    "sum-of-logs": ("torch.cumsum(torch.log(x), dim)", "tf.cumsum(tf.math.log(x), axis)"),
    "wide-sum": (
        "torch.{name}(x, dim, dtype=torch.float32)",
        "tf.math.{name}(tf.cast(x, tf.float32), axis)",
    ),
    # Matrices
    "jitter": ("a + 1e-6 * torch.randn_like(a)", "a + 1e-6 * tf.random.normal(tf.shape(a))"),
    "only-values": ("torch.linalg.svdvals", "tf.linalg.svd(a, compute_uv=False)"),
    "regularise": ("a + 1e-6 * torch.eye(n)", "a + 1e-6 * tf.eye(n)"),
    "least-squares": ("torch.linalg.lstsq or pinv", "tf.linalg.lstsq or tf.linalg.pinv"),
    # Optimizers
    "eps": ("eps", "epsilon"),
    "clip-before-step": (
        "clip gradients before the step "
        "(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)), or warm the rate up",
        "clip gradients (clipnorm=1.0 or global_clipnorm=1.0 of the optimizer), or warm the rate "
        "up (keras.optimizers.schedules)",
    ),
    "half-weights": (
        "keep float32 master weights (autocast instead of model.half())",
        'keep float32 weights (the dtype policy "mixed_float16" instead of "float16")',
    ),
    # What came in
    "drop-samples": (
        "x = torch.nan_to_num(x), or keep = torch.isfinite(x).flatten(1).all(1)",
        "dataset.filter(lambda x, y: tf.reduce_all(tf.math.is_finite(x))), or "
        "x = tf.where(tf.math.is_finite(x), x, 0.0)",
    ),
    "check-feed": (
        "assert torch.isfinite(x).all()",
        "assert np.isfinite(x).all(), and np.nan_to_num(x) for missing values",
    ),
    "check-weights": (
        "all(torch.isfinite(p).all() for p in model.parameters())",
        "all(np.isfinite(w).all() for w in model.get_weights())",
    ),
    "zeros": (
        "use torch.zeros (or fill the tensor) instead of torch.empty",
        "use tf.zeros (or fill the tensor) instead of tf.raw_ops.Empty",
    ),
    "custom-gradient": ("the backward of a custom Function", "the program's own gradient function"),
    "check-gradient": (
        "torch.autograd.gradcheck in float64",
        "tf.test.compute_gradient in float64",
    ),
    "tap": ('tl.tap(x, "name")', 'tl.tap(x, "name")'),
}
"""Phrase to its form for each of ``FRAMEWORKS``."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The phrases of one framework.

    Attributes:
        framework: ``"torch"`` or ``"tensorflow"``.
    """

    framework: str = "torch"

    def __call__(self, phrase: str, **values: object) -> str:
        """Return a phrase with its placeholders filled in.

        >>> Vocabulary("torch")("at-least", x="x", low=0)
        'x.clamp_min(0)'
        >>> Vocabulary("tensorflow")("at-least", x="x", low=0)
        'tf.maximum(x, 0)'
        """
        column = FRAMEWORKS.index(self.framework) if self.framework in FRAMEWORKS else 0
        return PHRASES[phrase][column].format(**values)
