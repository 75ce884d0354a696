"""Tests of correct Keras and TensorFlow models: none of them may raise an alarm."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def seed() -> None:
    keras.utils.set_random_seed(0)


def test_a_dense_network_learns() -> None:
    model = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x = np.random.rand(256, 8).astype("float32")
    history = model.fit(x, x.sum(1), epochs=2, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert model.predict(x[:4], verbose=0).shape == (4, 1)


def test_a_causal_mask_hides_the_future() -> None:
    layer = keras.layers.MultiHeadAttention(2, 8)
    x = tf.random.normal((2, 12, 16))
    assert layer(x, x, use_causal_mask=True).shape == (2, 12, 16)


def test_a_masked_softmax_sums_to_one() -> None:
    logits = tf.random.normal((8, 16, 16))
    mask = tf.linalg.band_part(tf.ones((16, 16)), -1, 0)
    weights = tf.nn.softmax(tf.where(mask > 0, logits, -np.inf))
    np.testing.assert_allclose(tf.reduce_sum(weights, -1), np.ones((8, 16)), rtol=1e-5)


def test_a_function_keeps_the_best() -> None:
    @tf.function
    def smallest(values: tf.Tensor) -> tf.Tensor:
        best = tf.constant(np.inf)
        for value in values:
            best = tf.minimum(best, value)
        return best

    assert smallest(tf.constant([3.0, 1.0, 2.0])).numpy() == 1.0


def test_an_entropy_is_safe_at_zero() -> None:
    p = tf.Variable([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        entropy = -tf.reduce_sum(p * tf.math.log(tf.where(p > 0, p, 1.0)))
    assert np.isfinite(tape.gradient(entropy, p).numpy()).all()


def test_missing_values_are_left_out() -> None:
    x = tf.constant([1.0, np.nan, 3.0])
    assert tf.reduce_mean(tf.boolean_mask(x, ~tf.math.is_nan(x))).numpy() == 2.0


def test_a_log_of_a_negative_number_is_nan() -> None:
    assert bool(tf.math.is_nan(tf.math.log(-1.0)))


def test_a_custom_loop_learns() -> None:
    w = tf.Variable(tf.zeros((4, 1)))
    x = tf.random.normal((64, 4))
    y = tf.reduce_sum(x, 1, keepdims=True)
    optimizer = keras.optimizers.SGD(0.1)
    losses = []
    for _ in range(10):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ w - y) ** 2)
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])
        losses.append(float(loss))
    assert losses[-1] < losses[0]
