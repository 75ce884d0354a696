"""TensorFlow training loops whose overhead is measured, each in several ways of running it.

``mlp`` is bound by the price of an op, ``gpt`` and ``conv`` by arithmetic. ``function`` is a train
step in a ``tf.function``, ``jit`` the same compiled by XLA, ``fit`` and ``fit-jit`` the same model
in ``model.fit``, ``eager`` the step without a function, ``session`` (mlp only) a TF1 graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from keras import layers


@dataclass
class Workload:
    """A training loop.

    Attributes:
        name: ``"mlp"``, ``"gpt"`` or ``"conv"``.
        way: how it is run, one of ``WAYS``.
        run: trains for a number of steps.
        weights: the weights it has reached.
        block_steps: how many steps make one timed block.
    """

    name: str
    way: str
    run: Callable[[int], None]
    weights: Callable[[], list[np.ndarray]]
    block_steps: int


Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass
class Parts:
    """What a loop is made of: an unbuilt optimizer, one batch for ever."""

    model: keras.Model
    loss: Loss
    optimizer: keras.optimizers.Optimizer
    x: tf.Tensor
    y: tf.Tensor
    block_steps: int


def mlp() -> Parts:
    """6 layers of 256 units, batch 64, Adam."""
    inputs = keras.Input((256,))
    h = inputs
    for _ in range(5):
        h = layers.Dense(256, activation="relu")(h)
    model = keras.Model(inputs, layers.Dense(256)(h))
    x, y = tf.random.normal((64, 256)), tf.random.normal((64, 256))
    return Parts(model, keras.losses.MeanSquaredError(), keras.optimizers.Adam(1e-3), x, y, 60)


class _Block(layers.Layer):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = layers.LayerNormalization(), layers.LayerNormalization()
        self.attend = layers.MultiHeadAttention(heads, width // heads, dropout=0.1)
        self.up = layers.Dense(4 * width, activation="gelu")
        self.down = layers.Dense(width)
        self.drop = layers.Dropout(0.1)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = self.norm1(x)
        x = x + self.attend(h, h, use_causal_mask=True, training=training)
        return x + self.drop(self.down(self.up(self.norm2(x))), training=training)


def gpt() -> Parts:
    """4 layers, width 256, 128 tokens, batch 8, 2048 words, dropout, AdamW."""
    inputs = keras.Input((128,), dtype="int32")
    h = layers.Embedding(2048, 256)(inputs)
    h = h + layers.Embedding(128, 256)(tf.range(128))
    for _ in range(4):
        h = _Block(256, 4)(h)
    model = keras.Model(inputs, layers.Dense(2048)(layers.LayerNormalization()(h)))
    tokens = tf.random.uniform((8, 129), maxval=2048, dtype=tf.int32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Parts(model, loss, keras.optimizers.AdamW(3e-4), tokens[:, :-1], tokens[:, 1:], 3)


def conv() -> Parts:
    """A small residual network, 64x64 images, batch 16, SGD with momentum."""

    def residual(x: tf.Tensor, filters: int, strides: int) -> tf.Tensor:
        h = layers.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
        h = layers.ReLU()(layers.BatchNormalization()(h))
        h = layers.Conv2D(filters, 3, 1, "same", use_bias=False)(h)
        h = layers.BatchNormalization()(h)
        if strides != 1 or x.shape[-1] != filters:
            x = layers.Conv2D(filters, 1, strides, use_bias=False)(x)
        return layers.ReLU()(h + x)

    inputs = keras.Input((64, 64, 3))
    h = layers.Conv2D(32, 3, padding="same")(inputs)
    for filters, strides in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        h = residual(h, filters, strides)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(h)))
    x = tf.random.normal((16, 64, 64, 3))
    y = tf.random.uniform((16,), maxval=10, dtype=tf.int32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Parts(model, loss, keras.optimizers.SGD(0.01, momentum=0.9), x, y, 3)


MODELS: dict[str, Callable[[], Parts]] = {"mlp": mlp, "gpt": gpt, "conv": conv}


def _step(parts: Parts) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    variables = parts.model.trainable_variables
    parts.optimizer.build(variables)

    def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = parts.loss(y, parts.model(x, training=True))
        parts.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return train_step


def _loop(parts: Parts, step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            loss = step(parts.x, parts.y)
        float(loss)

    return run


def _fit(parts: Parts, *, jit: bool) -> Callable[[int], None]:
    parts.model.compile(parts.optimizer, parts.loss, jit_compile=jit)
    data = tf.data.Dataset.from_tensors((parts.x, parts.y)).repeat()

    def run(steps: int) -> None:
        parts.model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)

    return run


def _session() -> Workload:
    """The mlp as a graph of TensorFlow 1, about 120 ops and Adam."""
    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        v1.set_random_seed(0)
        x, y = v1.placeholder(tf.float32, (None, 256)), v1.placeholder(tf.float32, (None, 256))
        h = x
        for index in range(6):
            weight = v1.get_variable(f"w{index}", (256, 256))
            bias = v1.get_variable(f"b{index}", (256,), initializer=v1.zeros_initializer())
            h = tf.nn.bias_add(tf.matmul(h, weight), bias)
            h = tf.nn.relu(h) if index < 5 else h
        loss = tf.reduce_mean(tf.square(h - y))
        train = v1.train.AdamOptimizer(1e-3).minimize(loss)
        start = v1.global_variables_initializer()
        variables = v1.trainable_variables()
    session = v1.Session(graph=graph)
    session.run(start)
    random = np.random.default_rng(0)
    feed = {t: random.normal(size=(64, 256)).astype("float32") for t in (x, y)}

    def run(steps: int) -> None:
        for _ in range(steps):
            session.run([train, loss], feed)

    return Workload("mlp", "session", run, lambda: session.run(variables), 60)


def make(name: str, way: str) -> Workload:
    """Make a training loop with weights of its own, always the same ones."""
    keras.utils.set_random_seed(0)
    if way == "session":
        return _session()
    parts = MODELS[name]()
    if way.startswith("fit"):
        run = _fit(parts, jit=way == "fit-jit")
    else:
        step = _step(parts)
        if way != "eager":
            step = tf.function(step, jit_compile=way == "jit" or None)
        run = _loop(parts, step)
    return Workload(name, way, run, parts.model.get_weights, parts.block_steps)


WAYS = {
    "mlp": ("function", "fit", "jit", "fit-jit", "session", "eager"),
    "gpt": ("function", "fit", "jit", "fit-jit", "eager"),
    "conv": ("function", "fit", "jit"),
}
