"""TensorFlow: from a hit to its op, and what keeping calls for a replay costs.

    python benchmarks/tf_replay.py hit [mlp gpt conv] [--plain]
    python benchmarks/tf_replay.py keep [mlp gpt conv] [--steps 300]

``hit`` trains with `model.fit` (compiled by XLA unless ``--plain``) until a NaN is made in the
middle of the model, and prints the median step, the replay's note, the time from the end of the
bad step to the finished report, and the line that was found. ``keep`` runs a train step with and
without the replayer's keeping of calls and variables, in turns, with no checks: CPU time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tracelens as tl
from tracelens.storage.reader import open_trace

BATCHES = 8
BLOCK = 20


class Spoiler(keras.layers.Layer):
    """Hands its input on until its counter reaches a step, then takes the root of a negative."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        """Return the input, or NaN."""
        self.count.assign_add(1)
        on = tf.cast(self.count > self.at, x.dtype)
        return x + tf.sqrt(-on)


def model_of(name: str, at: int) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Return a model that goes bad after so many steps, with one batch for it."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    layers = keras.layers
    if name == "mlp":
        body = [layers.Dense(256, activation="relu") for _ in range(6)]
        parts = [keras.Input((256,)), *body[:3], Spoiler(at), *body[3:], layers.Dense(10)]
        x = random.normal(size=(64, 256)).astype("float32")
        return keras.Sequential(parts), x, random.integers(0, 10, 64)
    if name == "conv":
        parts = [keras.Input((64, 64, 3))]
        for width in (32, 64, 64):
            parts += [
                layers.Conv2D(width, 3, padding="same"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.MaxPooling2D(),
            ]
        parts += [Spoiler(at), layers.Flatten(), layers.Dense(10)]
        x = random.normal(size=(16, 64, 64, 3)).astype("float32")
        return keras.Sequential(parts), x, random.integers(0, 10, 16)
    tokens = keras.Input((128,), dtype="int32")
    h = layers.Embedding(1000, 256)(tokens)
    for place in range(4):
        a = layers.LayerNormalization()(h)
        h = h + layers.MultiHeadAttention(4, 64)(a, a, use_causal_mask=True)
        f = layers.Dense(1024, activation="gelu")(layers.LayerNormalization()(h))
        h = h + layers.Dense(256)(f)
        if place == 1:
            h = Spoiler(at)(h)
    x = random.integers(0, 1000, (8, 128)).astype("int32")
    return keras.Model(tokens, layers.Dense(1000)(h)), x, x


def compiled(name: str, at: int, jit: bool) -> tuple[keras.Model, tf.data.Dataset]:
    """Return a compiled model and an endless dataset."""
    model, x, y = model_of(name, at)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=jit)
    return model, tf.data.Dataset.from_tensors((x, y)).repeat()


class Clock(keras.callbacks.Callback):
    """Takes the time of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """A step has ended."""
        self.seconds.append(time.perf_counter() - self._began)


def hit(name: str, jit: bool) -> None:
    """Print how long naming the op of a bad step took."""
    steps = 30
    model, data = compiled(name, steps, jit)
    clock = Clock()
    path = Path(tempfile.mkdtemp()) / "t.tltrace"
    with tl.trace(path, quiet=True) as session:
        model.fit(data, epochs=1, steps_per_epoch=steps + 1, verbose=0, callbacks=[clock])
        findings = session.findings
    step = statistics.median(clock.seconds[5:steps])
    notes = [e["message"] for e in open_trace(path).events("note") if e["kind"] == "replay"]
    cause = findings[0]["first_cause"] if findings else {}
    source = cause.get("source") or {}
    print(
        f"{name:5} step {step * 1e3:7.1f} ms, bad step {clock.seconds[-1] * 1e3:8.1f} ms "
        f"(hit to report {(clock.seconds[-1] - step) * 1e3:7.1f} ms): {cause.get('op')} at "
        f"line {source.get('line')}: {source.get('code')}\n      {notes[:1]}"
    )


def keep(name: str, steps: int) -> None:
    """Print what keeping calls costs, as a ratio of CPU times in turns."""
    from tracelens_tensorflow import calls
    from tracelens_tensorflow.replay import Replayer

    model, x, y = model_of(name, 1 << 30)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    x, y = tf.constant(x), tf.constant(y)
    concrete = step.get_concrete_function(x, y)
    function, args = concrete._inference_function, [x, y, *concrete.captured_inputs]
    replayer = Replayer(None, None)  # type: ignore[arg-type]

    def kept() -> None:
        call = calls.Call(function, list(args), 0)
        replayer.before_call(call)
        call.result = function.call_flat(*args)
        replayer.after_call(call)

    def plain() -> None:
        function.call_flat(*args)

    times: dict[str, list[float]] = {"plain": [], "kept": []}
    for _ in range(10):
        plain()
        kept()
    for _ in range(max(steps // BLOCK, 2)):
        for way, run in (("plain", plain), ("kept", kept)):
            started = time.process_time()
            for _ in range(BLOCK):
                run()
            times[way].append((time.process_time() - started) / BLOCK)
    medians = {way: statistics.median(found) for way, found in times.items()}
    means = {way: statistics.fmean(found) for way, found in times.items()}
    median, mean = (found["kept"] / found["plain"] for found in (medians, means))
    print(
        f"{name:5} plain {medians['plain'] * 1e3:7.2f} ms, kept x{median:.3f} (means x{mean:.3f}), "
        f"a snapshot each {replayer.history.every} calls"
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("hit", "keep"))
    parser.add_argument("names", nargs="*", default=["mlp", "gpt", "conv"])
    parser.add_argument("--plain", action="store_true", help="without XLA")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    for name in options.names:
        if options.what == "hit":
            hit(name, not options.plain)
        else:
            keep(name, options.steps if name == "mlp" else options.steps // 5)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
