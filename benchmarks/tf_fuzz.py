"""Poisons ops of TensorFlow train steps one at a time and counts what guard level misses.

    python benchmarks/tf_fuzz.py [-n POISONINGS] [--seed SEED] [--quick]

While a step is traced, every floating output of every op, gradients and updates included, inside
a loop too, gets ``+ log(p[k])`` with a number of its own that is 1. A poisoning sets one of
them to 0 or -1, so that this op's output is -Inf or NaN. What the plain step then leaves behind is
the truth: a poisoning is live if an output or a variable is non-finite. Found: the guarded step
counts a hit. Named: the report says that a ``Log`` made it (of those that were explained). Wrong:
an error where nothing was live.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

import tracelens as tl
from tracelens.storage.reader import open_trace

MAX_SITES = 4096
LEFT_ALONE = frozenset(
    "Const Placeholder ReadVariableOp VarHandleOp Identity Fill ZerosLike OnesLike ResourceGather "
    "Empty TensorListReserve RandomUniform RandomStandardNormal If StatelessIf While "
    "StatelessWhile PartitionedCall StatefulPartitionedCall TensorListPopBack "
    "TensorListPushBack TensorListStack".split()
)
"""Sources, and ops of which TensorFlow wants the very outputs it made."""


@dataclass
class Poison:
    """The numbers whose logarithms are added, and which op each one belongs to."""

    numbers: tf.Variable = field(
        default_factory=lambda: tf.Variable(tf.ones(MAX_SITES), trainable=False)
    )
    sites: list[str] = field(default_factory=list)

    def add(
        self,
        op_type: Any,
        inputs: Any,
        attrs: Any,
        outputs: Any,
        op_name: Any = None,
        graph: Any = None,
    ) -> Any:
        """Called for each op while it is traced; returns the outputs to go on with."""
        kind = tf.compat.as_str(op_type)
        # The gradient of a loop cannot take in a variable that its forward loop has not.
        if graph is None or kind in LEFT_ALONE or "Grad" in type(graph).__name__:
            return None
        return [self._spoilt(kind, out) if out.dtype == tf.float32 else out for out in outputs]

    def _spoilt(self, kind: str, out: tf.Tensor) -> tf.Tensor:
        if len(self.sites) >= MAX_SITES:
            return out
        self.sites.append(kind)
        spoilt = out + tf.math.log(self.numbers[len(self.sites) - 1])
        spoilt.set_shape(out.shape)
        return spoilt

    def set(self, site: int, number: float) -> None:
        values = np.ones(MAX_SITES, np.float32)
        values[site] = number
        self.numbers.assign(values)


@contextmanager
def spoiling(poison: Poison) -> Iterator[None]:
    op_callbacks.add_op_callback(poison.add)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(poison.add)


Step = Callable[[], list[tf.Tensor]]
Trial = tuple[int, float]


def trained(
    model: keras.Model, x: tf.Tensor, loss_of: Callable[..., tf.Tensor]
) -> tuple[Step, Any]:
    """Return a train step of a model and its variables, optimizer state included."""
    optimizer = keras.optimizers.Adam(1e-3)
    variables = model.trainable_variables
    optimizer.build(variables)
    clip = tf.constant(10.0)

    @tf.function
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = loss_of(model(x, training=True))
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, variables), clip)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return [loss, norm]

    return step, [v.value for v in [*model.variables, *optimizer.variables]]


def dense() -> tuple[Step, Any]:
    """Dense layers, dropout, layer normalisation, a squared error."""
    layers = keras.layers
    model = keras.Sequential(
        [layers.Dense(8, "gelu"), layers.LayerNormalization(), layers.Dropout(0.2), layers.Dense(3)]
    )
    model.build((None, 5))
    x, y = tf.random.normal((4, 5)), tf.random.normal((4, 3))
    return trained(model, x, lambda out: tf.reduce_mean(tf.math.squared_difference(out, y)))


def convolution() -> tuple[Step, Any]:
    """Convolutions, batch normalisation, pooling, a cross entropy."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 3, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    model.build((None, 8, 8, 2))
    x, y = tf.random.normal((4, 8, 8, 2)), tf.constant([0, 1, 2, 1])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return trained(model, x, lambda out: cross_entropy(y, out))


def attention() -> tuple[Step, Any]:
    """Embeddings, masked attention, a cross entropy over a vocabulary."""
    layers = keras.layers
    inputs = keras.Input((6,), dtype="int32")
    h = layers.Embedding(11, 8)(inputs)
    h = h + layers.MultiHeadAttention(2, 4)(h, h, use_causal_mask=True)
    model = keras.Model(inputs, layers.Dense(11)(layers.LayerNormalization()(h)))
    tokens = tf.random.uniform((3, 7), maxval=11, dtype=tf.int32)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return trained(model, tokens[:, :-1], lambda out: cross_entropy(tokens[:, 1:], out))


class Loop(keras.Model):
    """A recurrent cell in a while loop."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.add_weight(shape=(3, 5), name="inside")
        self.state = self.add_weight(shape=(5, 5), name="state")
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        def body(t: tf.Tensor, h: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            new = tf.tanh(x[t] @ self.inside + h @ self.state)
            return t + 1, tf.where(t % 2 == 0, new * 0.5, tf.nn.softplus(new))

        return tf.while_loop(lambda t, _: t < 4, body, (0, tf.zeros((2, 5))))[1]


def loop() -> tuple[Step, Any]:
    """A recurrence in a while loop, with its gradient's loop."""
    x = tf.random.normal((4, 2, 3))
    return trained(Loop(), x, lambda out: tf.reduce_mean(tf.square(out - 1.0)))


PROGRAMS: dict[str, Callable[[], tuple[Step, Any]]] = {
    "dense": dense, "convolution": convolution, "attention": attention, "loop": loop,
}  # fmt: skip


@dataclass
class Score:
    """What came of the poisonings of one program."""

    tried: int = 0
    live: int = 0
    found: int = 0
    asked: int = 0
    named: int = 0
    wrong: int = 0
    missed: list[str] = field(default_factory=list)


def fuzz(name: str, amount: int, named: int, random: np.random.Generator) -> Score:
    """Poison ops of one program and compare with what its plain step does."""
    keras.utils.set_random_seed(0)
    step, variables = PROGRAMS[name]()
    poison = Poison()
    with spoiling(poison):
        step()
    start = [variable.numpy() for variable in variables]

    def reset(site: int, number: float) -> None:
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        poison.set(site, number)

    def spoilt(outputs: list[tf.Tensor]) -> bool:
        values = [*(out.numpy() for out in outputs), *(v.numpy() for v in variables)]
        return not all(np.isfinite(value).all() for value in values if value.dtype.kind == "f")

    trials = [
        (int(random.integers(len(poison.sites))), float(random.choice([0.0, -1.0])))
        for _ in range(amount)
    ]
    live = []
    for site, number in trials:
        reset(site, number)
        live.append(spoilt(step()))
    score = Score(len(trials), sum(live))
    with tempfile.TemporaryDirectory() as folder:
        caught = seen(Path(folder) / "all.tltrace", step, trials, reset)
        for (site, number), bad, hit in zip(trials, live, caught, strict=True):
            score.found += bad and hit
            if bad and not hit:
                score.missed.append(f"{poison.sites[site]} {'-inf' if number == 0 else 'nan'}")
        # A session tells each failure once, and here all of them look alike: one each.
        for index, (trial, bad) in enumerate(zip(trials[:named], live, strict=False)):
            reset(*trial)
            with tl.trace(Path(folder) / f"{index}.tltrace", nonfinite="raise", quiet=True):
                told = raised(step)
            score.asked += bad
            score.named += bad and told == "Log"
            score.wrong += not bad and told is not None
    return score


def seen(
    trace: Path, step: Step, trials: list[Trial], reset: Callable[[int, float], None]
) -> list[bool]:
    """Tell of each poisoning whether the guarded step that it was made in counts a hit."""
    at = []
    with tl.trace(trace, quiet=True) as session:
        for trial in trials:
            reset(*trial)
            session.step()
            at.append(session.current_step)
            step()
        session.step()
    with open_trace(trace) as reader:
        hits = {each["step"]: each.get("hits", 0) for each in reader.steps()}
    return [hits.get(number, 0) > 0 for number in at]


def raised(step: Step) -> str | None:
    """Run a guarded step; the op it blames if it raises."""
    try:
        step()
    except tl.NonFiniteError as error:
        first = error.report.get("first_cause") or {}
        return str(first.get("op") or "?")
    return None


def main() -> None:
    """Fuzz every program and print the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--poisonings", type=int, default=2000, help="in all")
    parser.add_argument("--named", type=int, default=80, help="explained in full, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="200 poisonings")
    options = parser.parse_args()
    if options.quick:
        options.poisonings, options.named = 200, 8
    amount = options.poisonings // len(PROGRAMS)
    random = np.random.default_rng(options.seed)
    print(f"{'program':14} {'tried':>6} {'live':>6} {'found':>6} {'named':>8} {'wrong':>6}")
    missed: list[str] = []
    for name in PROGRAMS:
        score = fuzz(name, amount, options.named // len(PROGRAMS), random)
        missed += [f"{name}: {each}" for each in score.missed]
        print(
            f"{name:14} {score.tried:6} {score.live:6} {score.found:6} "
            f"{f'{score.named}/{score.asked}':>8} {score.wrong:6}",
            flush=True,
        )
    print(f"missed: {len(missed)}")
    for each in missed[:20]:
        print(f"  {each}")


if __name__ == "__main__":
    main()
