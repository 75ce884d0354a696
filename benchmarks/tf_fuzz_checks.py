"""Poison random ops of TensorFlow functions with NaN or Inf; count what the checks do not see.

Each trial takes one float tensor of a traced function (bodies of loops, branches and called
functions included), puts a NaN or an Inf into it, and runs the function twice from the same
state: plain, to learn whether the poison reaches a result or a variable (it is live), and as the
checked twin. A live poison that no check sees is a miss.

    python benchmarks/tf_fuzz_checks.py --trials 1500 [--engine native|python] [--seed 0]
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from tracelens_tensorflow import checking, fdef, native
from tracelens_tensorflow.fdef import Editor
from tracelens_tensorflow.frontier import Level, checkable
from tracelens_tensorflow.twin import Builder, Part

_numbers = itertools.count()
POISONS = (np.nan, np.inf, -np.inf)


@dataclass
class Subject:
    """A function to poison.

    Attributes:
        name: what it is.
        function: its ``AtomicFunction``.
        args: flat arguments, captures included.
        variables: what it may write.
    """

    name: str
    function: Any
    args: list[Any]
    variables: list[tf.Variable]
    part: Part | None = None
    values: list[Any] = field(default_factory=list)

    def restore(self) -> None:
        for variable, value in zip(self.variables, self.values, strict=True):
            variable.assign(value)


def subjects(names: Sequence[str]) -> Iterator[Subject]:
    for name in names:
        make = MAKERS[name]
        keras.utils.set_random_seed(0)
        function, inputs, variables = make()
        concrete = function.get_concrete_function(*inputs)
        args = [*inputs, *concrete.captured_inputs]
        subject = Subject(name, concrete._inference_function, args, variables)
        subject.values = [tf.identity(variable) for variable in variables]
        yield subject


def trained(model: Any, x: Any, y: Any, optimizer: Any, loss_of: Callable[..., Any]) -> Any:
    optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    variables = [v.value for v in (*model.variables, *optimizer.variables)]
    return train_step, (x, y), [v for v in variables if isinstance(v, tf.Variable)]


def cross_entropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


L = keras.layers


def mlp() -> Any:
    hidden = [L.Dense(16, activation=a) for a in ("relu", "gelu", "tanh", "softplus", "elu")]
    model = keras.Sequential([L.Input((8,)), *hidden, L.Dense(4)])
    labels = tf.constant([0, 1, 2, 3])
    return trained(
        model, tf.random.normal((4, 8)), labels, keras.optimizers.Adam(), cross_entropy()
    )


def conv() -> Any:
    model = keras.Sequential(
        [
            L.Input((8, 8, 3)),
            L.Conv2D(4, 3, padding="same"),
            L.BatchNormalization(),
            L.ReLU(),
            L.Conv2D(4, 3, strides=2, activation="sigmoid"),
            L.DepthwiseConv2D(3, padding="same"),
            L.MaxPool2D(),
            L.Dropout(0.3),
            L.Flatten(),
            L.Dense(4),
        ]
    )
    return trained(
        model, tf.random.normal((4, 8, 8, 3)), tf.constant([0, 1, 2, 3]),
        keras.optimizers.SGD(0.01, momentum=0.9), cross_entropy(),
    )  # fmt: skip


def gpt() -> Any:
    tokens = L.Input((6,), dtype="int32")
    hidden = L.Embedding(10, 8)(tokens)
    for _ in range(2):
        normal = L.LayerNormalization()(hidden)
        hidden = hidden + L.MultiHeadAttention(2, 4)(normal, normal, use_causal_mask=True)
        inner = L.Dense(16, activation="gelu")(L.LayerNormalization()(hidden))
        hidden = hidden + L.Dense(8)(inner)
    model = keras.Model(tokens, L.Dense(10)(hidden))
    x = tf.constant(np.random.default_rng(0).integers(0, 10, (3, 6)), tf.int32)
    return trained(model, x, x, keras.optimizers.AdamW(), cross_entropy())


def recurrent() -> Any:
    model = keras.Sequential([L.Input((5, 3)), L.LSTM(4), L.Dense(2)])
    x, y = tf.random.normal((4, 5, 3)), tf.random.normal((4, 2))
    return trained(model, x, y, keras.optimizers.RMSprop(), keras.losses.Huber())


def control_flow() -> Any:
    weight = tf.Variable(tf.random.uniform([6]) + 0.5)

    @tf.function
    def inner(x):
        return tf.sqrt(tf.abs(x)) * 2.0 + tf.reduce_mean(x)

    @tf.function
    def train_step(x):
        with tf.GradientTape() as tape:
            h = inner(x * weight)
            for _ in tf.range(3):
                h = tf.tanh(h) + tf.math.log1p(tf.abs(h))
            h = tf.exp(-h) if tf.reduce_sum(h) > 0.0 else h / 2.0
            parts = tf.map_fn(lambda e: e * e + 1.0, h)
            loss = tf.reduce_sum(tf.math.log(parts))
        gradient = tape.gradient(loss, weight)
        weight.assign_sub(0.1 * gradient)
        return loss, tf.linalg.norm(gradient)

    return train_step, (tf.random.uniform([6]) + 0.1,), [weight]


def arithmetic() -> Any:
    total = tf.Variable(tf.zeros([4]))

    @tf.function
    def compute(x, y):
        a = tf.math.divide_no_nan(x, y) + tf.math.xlogy(x, y)
        b = tf.einsum("ij,kj->ik", x, y)
        c = tf.concat([tf.cumsum(a, 1), b], 1)
        d = tf.math.softplus(c) - tf.math.lgamma(tf.abs(c) + 1.5)
        e = tf.gather(d, [0, 2]) * tf.stack([d[0], d[3]])
        f = tf.math.segment_sum(tf.transpose(d), tf.constant([0, 0, 1, 1, 2, 2, 3, 3]))
        g = tf.cast(tf.cast(f, tf.float64) ** 2.0, tf.float32)
        total.assign_add(tf.reduce_mean(tf.reshape(g, [-1, 4]), 0))
        return tf.nn.l2_normalize(e), tf.math.rsqrt(tf.abs(g) + 1.0), tf.sort(a)

    inputs = tf.random.uniform([4, 4]) + 0.1, tf.random.uniform([4, 4]) + 0.1
    return compute, inputs, [total]


MAKERS: dict[str, Callable[[], Any]] = {
    "mlp": mlp,
    "conv": conv,
    "gpt": gpt,
    "recurrent": recurrent,
    "control flow": control_flow,
    "arithmetic": arithmetic,
}


@dataclass(frozen=True)
class Target:
    """Where a poison goes: the calls on the way there, the reference, the tensor."""

    path: tuple[tuple[str, str, int], ...]
    ref: str
    tensor: Any


def targets(function: Any, path: tuple[tuple[str, str, int], ...] = ()) -> Iterator[Target]:
    """Yield every float tensor that an op of a function makes, called functions included."""
    children = {fdef.text(child.name): child for child in function.children}
    editor = Editor(function.definition, function.graph)
    for op in editor.live_ops():
        for attribute, names in fdef.called_by(op).items():
            for place, name in enumerate(names):
                if attribute != "cond" and name in children and len(path) < 4:
                    yield from targets(children[name], (*path, (op.name, attribute, place)))
        if op.type in ("Placeholder", "Const"):
            continue
        for tensor in op.outputs:
            if checkable(tensor) and tensor.dtype.size >= 4:
                yield Target(path, editor.ref(tensor), tensor)


def poisoned(
    context: Any, name: str, target: Target, array: Any, made: list[str], depth: int = 0
) -> str:
    """Return the name of a copy of a function in which a tensor is poisoned.

    Args:
        context: the runtime.
        name: of the function.
        target: the tensor.
        array: what is added to it.
        made: takes the names of the functions made.
        depth: how far into the target's path this is.
    """
    definition = context.get_function_def(name)
    editor = Editor(definition, None)
    if depth < len(target.path):
        node_name, attribute, place = target.path[depth]
        node = editor.node(node_name)
        value = node.attr[attribute]
        called = (value.list.func[place] if attribute == "branches" else value.func).name
        fdef.set_called(
            node, attribute, place, poisoned(context, called, target, array, made, depth + 1)
        )
    else:
        readers = list(definition.node_def)
        dtype = target.tensor.dtype
        poison = editor.constant(array, dtype)
        bad = editor.simple("AddV2", [target.ref, poison], "z", T=dtype)
        for node in readers:
            for at, ref in enumerate(node.input):
                if ref == target.ref:
                    node.input[at] = bad
        for key, ref in definition.ret.items():
            if ref == target.ref:
                definition.ret[key] = bad
    definition.signature.name = f"{name}_poison{next(_numbers)}"
    context.add_function_def(definition)
    made.append(definition.signature.name)
    return made[-1]


def poison_for(tensor: Any, generator: random.Random) -> Any:
    """Return what to add to a tensor: zeros but for one element, or one number."""
    value = generator.choice(POISONS)
    shape = tensor.shape
    if not shape.is_fully_defined() or not shape.num_elements() or generator.random() < 0.2:
        return np.asarray(value)
    array = np.zeros(shape.as_list())
    array.reshape(-1)[generator.randrange(array.size)] = value
    return array


def is_bad(tensor: Any) -> bool:
    if tensor.dtype in (tf.resource, tf.variant) or not tensor.dtype.is_floating:
        return False
    return not bool(np.isfinite(tensor.numpy().astype(np.float64)).all())


def fuzz(
    trials: int, *, use_ops: bool, seed: int = 0, names: Sequence[str] = ()
) -> tuple[Counter[str], list[str]]:
    """Run trials; return counts (``live``, ``masked``, ``missed``, ...) and the misses."""
    generator = random.Random(seed)
    counts: Counter[str] = Counter()
    misses: list[str] = []
    builder = Builder(checking.sinks_of, Level.FRONTIER, use_ops)
    pool: list[tuple[Subject, list[Target]]] = []
    for subject in subjects(names or list(MAKERS)):
        subject.part = builder.build(subject.function)
        found = list(targets(subject.function))
        counts[f"checks {subject.name}"] = subject.part.checks
        counts[f"tensors {subject.name}"] = len(found)
        pool.append((subject, found))
    for _ in range(trials):
        subject, found = generator.choice(pool)
        target = generator.choice(found)
        outcome = trial(subject, target, poison_for(target.tensor, generator), use_ops)
        counts[outcome] += 1
        if outcome == "missed":
            misses.append(f"{subject.name}: {target.tensor.name} ({target.tensor.op.type})")
    return counts, misses


def trial(subject: Subject, target: Target, array: Any, use_ops: bool) -> str:
    """Return ``live``, ``missed``, ``masked`` (and whether seen) of one poison."""
    made: list[str] = []
    try:
        return _trial(subject, target, array, use_ops, made)
    finally:
        subject.restore()
        for name in made:
            subject.function._bound_context.remove_function(name)


def _trial(subject: Subject, target: Target, array: Any, use_ops: bool, made: list[str]) -> str:
    part = subject.part
    assert part is not None and part.function is not None
    context = subject.function._bound_context
    n_outputs = len(subject.function.function_type.flat_outputs)
    subject.restore()
    plain = poisoned(context, fdef.text(subject.function.name), target, array, made)
    try:
        outputs = context.call_function(plain.encode(), subject.args, n_outputs)
    except tf.errors.InvalidArgumentError:  # An index made of the poison: the program ends there.
        return "refused"
    live = any(map(is_bad, outputs)) or any(is_bad(v.read_value()) for v in subject.variables)
    subject.restore()
    twin = poisoned(context, fdef.text(part.function.name), target, array, made)
    extra = bool(part.vector) + len(part.kept)
    if use_ops:
        native.checks().take()
    results = context.call_function(twin.encode(), subject.args, n_outputs + extra)
    seen = use_ops and bool(native.checks().take())
    if part.vector:
        seen = seen or not np.isfinite(results[n_outputs].numpy()).all()
    if live:
        return "live" if seen else "missed"
    return "masked, seen" if seen else "masked, not seen"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1500)
    parser.add_argument("--engine", choices=("native", "python"), default="native")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    counts, misses = fuzz(options.trials, use_ops=options.engine == "native", seed=options.seed)
    for name, count in sorted(counts.items()):
        print(f"{count:6d}  {name}")
    for miss in misses:
        print(f"missed: {miss}")
    print(f"{time.perf_counter() - started:.0f} s")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
