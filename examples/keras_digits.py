"""Train a small Keras model on handwritten digits until a real numeric bug ends it.

It knows nothing of TraceLens: record it with `tracelens run examples/keras_digits.py`. As in
`digits_nan.py`, the loss takes the logarithm of a probability that becomes 0 in float32 once
the network is sure of itself; here the bug sits in a compiled `tf.function` inside `fit`.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

EPOCHS = 60
BATCH = 64


def cross_entropy(targets: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Sum of -target * log(probability): two of (batch, 10) -> (batch,)."""
    return -tf.reduce_sum(targets * tf.math.log(probabilities), axis=-1)


def main() -> None:
    """Train; the loss turns NaN on the way."""
    keras.utils.set_random_seed(0)
    digits = load_digits()
    pixels = (digits.data / 16).astype("float32")
    labels = keras.utils.to_categorical(digits.target, 10)
    model = keras.Sequential(
        [
            keras.layers.Dense(128, activation="relu", name="first"),
            keras.layers.Dense(128, activation="relu", name="second"),
            keras.layers.Dense(10, activation="softmax", name="head"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.03), loss=cross_entropy, metrics=["accuracy"])
    history = model.fit(pixels, labels, epochs=EPOCHS, batch_size=BATCH, verbose=0)
    for epoch in range(0, EPOCHS, 10):
        print(f"epoch {epoch:2}  loss {history.history['loss'][epoch]:.4f}")


if __name__ == "__main__":
    main()
