"""Training under guard gives the same weights as plain training, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from guarded import guard, notes

STEPS = 6
layers = keras.layers


def mlp() -> Any:
    hidden = [layers.Dense(32, activation="relu") for _ in range(3)]
    return keras.Sequential([layers.Input((16,)), *hidden, layers.Dense(5)])


def conv() -> Any:
    return keras.Sequential(
        [
            layers.Input((12, 12, 3)),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPool2D(),
            layers.Dropout(0.2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )


def gpt() -> Any:
    tokens = layers.Input((12,), dtype="int32")
    hidden = layers.Embedding(20, 16)(tokens)
    normal = layers.LayerNormalization()(hidden)
    hidden = hidden + layers.MultiHeadAttention(2, 8, dropout=0.1)(
        normal, normal, use_causal_mask=True
    )
    inner = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(hidden))
    hidden = hidden + layers.Dense(16)(inner)
    return keras.Model(tokens, layers.Dense(5)(layers.Flatten()(hidden)))


def batch_of(make: Callable[[], Any]) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    if make is gpt:
        x: Any = generator.integers(0, 20, (8, 12))
    else:
        x = generator.standard_normal((8, 12, 12, 3) if make is conv else (8, 16))
    return tf.constant(x, tf.int32 if make is gpt else tf.float32), tf.constant(
        generator.integers(0, 5, 8), tf.int32
    )


def train(make: Callable[[], Any], *, jit: bool, fit: bool) -> list[np.ndarray]:
    keras.utils.set_random_seed(3)
    model = make()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = batch_of(make)
    if fit:
        model.compile("adam", loss_of, jit_compile=jit)
        model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(STEPS), verbose=0)
        return list(model.get_weights())
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=jit)
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    losses = [train_step(x, y).numpy() for _ in range(STEPS)]
    return [*losses, *model.get_weights(), *(v.numpy() for v in optimizer.variables)]


@pytest.mark.parametrize("engine", (None, "python", "sentinel"))
@pytest.mark.parametrize("make", (mlp, conv, gpt))
def test_a_traced_step_trains_to_the_same_bits(
    tmp_path: Path, make: Callable[[], Any], engine: str | None
) -> None:
    plain = train(make, jit=False, fit=False)
    with guard(tmp_path, engine=engine) as session:
        guarded = train(make, jit=False, fit=False)
    assert session.findings == []
    assert notes(session, "hook_failed") == []
    for one, other in zip(plain, guarded, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", (mlp, gpt))
def test_fit_trains_to_the_same_bits(tmp_path: Path, make: Callable[[], Any]) -> None:
    plain = train(make, jit=False, fit=True)
    with guard(tmp_path):
        guarded = train(make, jit=False, fit=True)
    for one, other in zip(plain, guarded, strict=True):
        np.testing.assert_array_equal(one, other)


def test_under_xla_results_differ_in_rounding_at_most(tmp_path: Path) -> None:
    plain = train(mlp, jit=True, fit=False)
    with guard(tmp_path):
        guarded = train(mlp, jit=True, fit=False)
    for one, other in zip(plain, guarded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_random_numbers_are_those_of_the_plain_run(tmp_path: Path) -> None:
    def run() -> list[np.ndarray]:
        tf.random.set_seed(5)
        generator = tf.random.Generator.from_seed(1)

        @tf.function
        def draw():
            return tf.random.normal([3]), tf.random.uniform([2]), generator.normal([2])

        return [value.numpy() for _ in range(3) for value in draw()]

    plain = run()
    with guard(tmp_path):
        guarded = run()
    for one, other in zip(plain, guarded, strict=True):
        np.testing.assert_array_equal(one, other)
