"""Trace a function again on request.

What was traced before a session began is checked all the same, but nobody saw then which of its
tensors are losses and gradients, nor which layers and forward ops its ops belong to.
"""

from __future__ import annotations

from typing import Any

from tracelens.errors import ConfigError


def retrace(function: Any) -> None:
    """Let a ``tf.function`` or a Keras model's functions be traced anew at the next call.

    Args:
        function: a ``tf.function``, or a compiled Keras model.

    Raises:
        ConfigError: it is neither, or this TensorFlow keeps its traces elsewhere.

    Examples:
        >>> import tensorflow as tf
        >>> traced = []
        >>> @tf.function(autograph=False)
        ... def double(x):
        ...     traced.append(x.dtype.name)
        ...     return 2.0 * x
        >>> float(double(tf.constant(1.0)) + double(tf.constant(2.0))), len(traced)
        (6.0, 1)
        >>> retrace(double)
        >>> float(double(tf.constant(1.0))), len(traced)
        (2.0, 2)
    """
    if hasattr(function, "make_train_function"):
        for made in ("train_function", "test_function", "predict_function"):
            setattr(function, made, None)
        return
    cache = getattr(function, "_function_cache", None)
    if cache is None or not hasattr(cache, "clear"):
        raise ConfigError(
            f"retrace: {function!r} is no tf.function and no Keras model whose traces are known"
        )
    cache.clear()
