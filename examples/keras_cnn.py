"""Train a Keras model on handwritten digits with `fit`, watched by the callback.

python examples/keras_cnn.py
"""

from __future__ import annotations

from pathlib import Path

import keras
from sklearn.datasets import load_digits

import tracelens_tensorflow

EPOCHS = 3


def main() -> None:
    """Train, and tell how well the network reads digits."""
    keras.utils.set_random_seed(0)
    digits = load_digits()
    pixels = (digits.images / 16).astype("float32")[..., None]
    model = keras.Sequential(
        [
            keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="second"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss, metrics=["accuracy"])
    watch = tracelens_tensorflow.TraceCallback(Path("keras-cnn.tltrace"), nonfinite="raise")
    history = model.fit(
        pixels, digits.target, epochs=EPOCHS, batch_size=64, verbose=0, callbacks=[watch]
    )
    for epoch, value in enumerate(history.history["loss"]):
        print(f"epoch {epoch}  loss {value:.4f}")
    print(f"{100 * history.history['accuracy'][-1]:.1f} % of the digits are read right")


if __name__ == "__main__":
    main()
