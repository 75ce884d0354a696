"""First call of a TensorFlow train step: tracing time and peak memory, plain and under a session.

Each way runs in processes of its own, one after the other in turns, so that nothing is warm and a
drift of the machine hits all ways alike. Ways: ``plain``, ``facts`` (only what notes lines,
layers and gradients while graphs are traced) and ``guard`` (a whole session at guard level).

    python benchmarks/tf_first_call.py [--rounds 3] [--layers 4]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAYS = ("plain", "facts", "guard")


def main() -> None:
    """Run every way in turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--way", choices=WAYS, help="run one way here and print its figures")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.layers)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--layers", str(options.layers)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[way].append(json.loads(out.splitlines()[-1]))
    print(f"{'way':8}{'first call':>12}{'ratio':>8}{'peak memory':>14}{'ratio':>8}")
    base = {key: median(found["plain"], key) for key in ("seconds", "peak_bytes")}
    for way in WAYS:
        seconds, peak = (median(found[way], key) for key in ("seconds", "peak_bytes"))
        print(
            f"{way:8}{seconds:10.2f} s{seconds / base['seconds']:8.3f}"
            f"{peak / 2**20:10.0f} MiB{peak / base['peak_bytes']:8.3f}"
        )


def median(runs: list[dict[str, float]], key: str) -> float:
    """Return the median of one figure."""
    return statistics.median(run[key] for run in runs)


def measure(way: str, layers: int) -> dict[str, float]:
    """Trace and run a train step of a transformer once.

    Returns:
        ``seconds`` of the first call, ``peak_bytes`` resident at the most, ``n_ops`` of the graph.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    with watched(way):
        step, tokens = train_step(layers)
        started = time.perf_counter()
        step(tokens)
        seconds = time.perf_counter() - started
    graph = step.get_concrete_function(tf.TensorSpec(tokens.shape, tokens.dtype)).graph
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "n_ops": graph.num_operations()}


@contextmanager
def watched(way: str) -> Iterator[None]:
    """Watch what a way watches."""
    if way == "facts":
        from tracelens_tensorflow import facts

        uninstall = facts.install(None)
        yield
        uninstall()
    elif way == "guard":
        import tracelens as tl

        with (
            tempfile.TemporaryDirectory() as directory,
            tl.trace(Path(directory) / "t.tltrace", quiet=True),
        ):
            yield
    else:
        yield


def train_step(layers: int, width: int = 128, length: int = 64) -> tuple[Callable[..., Any], Any]:
    """Return a train step of a small decoder and a batch for it."""
    import keras
    import tensorflow as tf

    inputs = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(256, width)(inputs)
    for _ in range(layers):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(4, width // 4)(y, y, use_causal_mask=True)
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * width, activation="gelu")(y)
        x = x + keras.layers.Dense(width)(y)
    model = keras.Model(inputs, keras.layers.Dense(256)(x))
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(tokens: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(tokens, model(tokens, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step, tf.zeros([4, length], tf.int32)


if __name__ == "__main__":
    main()
