"""``capture="ops"`` for traced functions: by probes and op by op, with one result."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from guarded import code_of, errors, guard, notes, steps

import tracelens as tl
from tracelens import nativebuild
from tracelens.events import OpFlag, Phase

ENGINES = [
    pytest.param(
        "native",
        marks=pytest.mark.skipif(nativebuild.compiler() is None, reason="no C++ compiler here"),
    ),
    "python",
]
both = pytest.mark.parametrize("engine", ENGINES)


def ops_of(session: Any) -> list[Any]:
    return list(tl.load(session.path).ops)


def named(ops: list[Any], name: str) -> list[Any]:
    return [op for op in ops if op.name == name]


def value_ids(op: Any) -> list[int]:
    return [tensor.value_id for tensor in op.inputs]


@both
def test_every_op_has_its_statistics_its_line_and_its_inputs(tmp_path: Path, engine: str) -> None:
    weight = tf.Variable([[1.0, 2.0], [3.0, 4.0]])

    @tf.function
    def train_step(x):
        with tf.GradientTape() as tape:
            hidden = tf.matmul(x, weight)  # product
            loss = tf.reduce_mean(tf.square(hidden))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with guard(tmp_path, engine=engine, capture="ops") as session:
        for _ in range(2):
            train_step(tf.constant([[1.0, 1.0]]))
    ops = ops_of(session)
    product = next(op for op in named(ops, "MatMul") if op.phase is Phase.FORWARD)
    assert "# product" in product.source.code
    stats = product.outputs[0].stats
    assert (stats.numel, stats.nan, stats.vmin, stats.vmax) == (2, 0, 4.0, 6.0)
    assert (stats.mean, stats.std, stats.l2) == pytest.approx((5.0, 1.0, 52**0.5))
    assert product.outputs[0].shape == (1, 2) and product.outputs[0].dtype == "float32"
    square = next(op for op in named(ops, "Square"))
    assert value_ids(square) == [product.outputs[0].value_id]
    backward = next(op for op in named(ops, "MatMul") if op.phase is Phase.BACKWARD)
    assert backward.fwd_op_id == product.op_id
    updates = named(ops, "AssignSubVariableOp")
    assert len(updates) == 2
    assert value_ids(updates[1])[0] == updates[0].outputs[0].value_id
    assert [step["step"] for step in steps(session)][:2] == [0, 1]


@both
def test_a_loop_records_each_iteration_and_hands_values_on(tmp_path: Path, engine: str) -> None:
    @tf.function
    def inner(y):
        return tf.sqrt(y)  # inside

    @tf.function
    def compute(x):
        y = x + 1.0
        for _ in tf.range(3):
            y = inner(y) * 2.0
        return tf.exp(y)

    with guard(tmp_path, engine=engine, capture="ops") as session:
        compute(tf.constant([1.0, 2.0]))
    ops = ops_of(session)
    roots, products = named(ops, "Sqrt"), named(ops, "Mul")
    assert len(roots) == len(products) == 3
    start = next(op for op in ops if op.name == "AddV2" and op.outputs[0].dtype == "float32")
    assert value_ids(roots[0]) == [start.outputs[0].value_id]
    for before, after in zip(products, roots[1:], strict=False):
        assert value_ids(after) == [before.outputs[0].value_id]
    assert "# inside" in roots[0].source.code


@both
@pytest.mark.parametrize("jit", [False, True])
def test_a_nan_is_named_with_its_line_and_its_inputs_statistics(
    tmp_path: Path, engine: str, jit: bool
) -> None:
    weight = tf.Variable([1.0, 2.0], name="weight")

    @tf.function(jit_compile=jit)
    def train_step(x):
        with tf.GradientTape() as tape:
            y = tf.math.log(x)  # here
            loss = tf.reduce_sum(y * weight)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with guard(tmp_path, engine=engine, capture="ops") as session:
        for step in range(4):
            train_step(tf.constant([-1.0 if step == 2 else 1.0, 2.0]))
    first = errors(session)[0]
    assert "# here" in code_of(first) and first["step"] == 2 and first["exact"]
    cause = first["first_cause"]
    assert cause["op"] == "Log"
    assert (cause["inputs"][0]["min"], cause["inputs"][0]["nan"]) == (-1.0, 0)
    assert {f["sink"]["sink"] for f in errors(session)} >= {"loss", "gradient", "parameter"}
    assert notes(session, "hook_failed") == []
    assert steps(session)[2]["hits"] > 0


@both
def test_a_nan_in_a_while_body_names_its_line(tmp_path: Path, engine: str) -> None:
    @tf.function
    def compute(x):
        y = x
        for _ in tf.range(4):
            y = tf.sqrt(y - 1.0)  # sinks below zero
        return tf.reduce_sum(y)

    with guard(tmp_path, engine=engine, capture="ops") as session:
        compute(tf.constant([4.0]))
    (first,) = errors(session)
    assert "# sinks below zero" in code_of(first)
    assert first["first_cause"]["op"] == "Sqrt"


@both
def test_a_bad_variable_and_bad_data_are_told_as_what_came_in(tmp_path: Path, engine: str) -> None:
    weight = tf.Variable([1.0, float("nan")], name="weight")

    @tf.function
    def compute(x):
        return tf.reduce_sum(x * weight)

    @tf.function
    def other(x):
        return tf.reduce_sum(x * 2.0)

    with guard(tmp_path / "a", engine=engine, capture="ops") as session:
        compute(tf.constant([1.0, 2.0]))
    assert errors(session)[0]["first_cause"]["origin"] in ("parameter", "outside")
    with guard(tmp_path / "b", engine=engine, capture="ops") as session:
        other(tf.constant([1.0, 2.0, float("nan")]))
    (first,) = errors(session)
    assert first["first_cause"]["origin"] == "data"


@both
def test_constants_and_views_are_no_causes(tmp_path: Path, engine: str) -> None:
    mask = tf.constant([0.0, float("-inf")])

    @tf.function
    def attend(x):
        return tf.reshape(tf.nn.softmax(x + tf.constant([0.0, float("-inf")]) + mask), [2, 1])

    with guard(tmp_path, engine=engine, capture="ops") as session:
        for _ in range(3):
            attend(tf.constant([1.0, 2.0]))
    assert errors(session) == []
    view = named(ops_of(session), "Reshape")[0]
    softmax = named(ops_of(session), "Softmax")[0]
    assert view.flags & OpFlag.VIEW
    assert view.outputs[0].value_id == softmax.outputs[0].value_id


@both
def test_only_active_steps_are_recorded_and_the_others_are_checked(
    tmp_path: Path, engine: str
) -> None:
    weight = tf.Variable(1.0)

    @tf.function
    def train_step(x):
        weight.assign(tf.math.log(x))
        return weight + 1.0

    schedule = tl.schedule(wait=1, active=1, repeat=1)
    with guard(tmp_path, engine=engine, capture="ops", schedule=schedule) as session:
        for step in range(4):
            train_step(tf.constant(-1.0 if step == 3 else 1.0))
    recorded = Counter(op.step for op in ops_of(session) if not op.flags & OpFlag.REPLAYED)
    assert recorded[1] > 3
    assert not recorded[0] and not recorded[2]
    assert "log" in code_of(errors(session)[0])


@both
def test_fit_is_recorded_with_layers_and_phases(tmp_path: Path, engine: str) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.layers.Dense(4, activation="relu", name="first"), keras.layers.Dense(1, name="last")]
    )
    model.compile("adam", "mse")
    x, y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")
    with guard(tmp_path, engine=engine, capture="ops") as session:
        model.fit(x, y, batch_size=4, epochs=1, verbose=0)
    ops = ops_of(session)
    assert {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER} <= {op.phase for op in ops}
    layers = {op.module for op in named(ops, "MatMul")}
    assert any("first" in layer for layer in layers) and any("last" in layer for layer in layers)
    assert errors(session) == [] and notes(session, "hook_failed") == []


@both
def test_an_error_of_the_program_reaches_it_unchanged_and_runs_once(
    tmp_path: Path, engine: str
) -> None:
    count = tf.Variable(0)

    @tf.function
    def fails(x):
        count.assign_add(1)
        with tf.control_dependencies([count]):
            return tf.debugging.check_numerics(x, "mine") + 1.0

    failure = pytest.raises(tf.errors.InvalidArgumentError, match="mine")
    with guard(tmp_path, engine=engine, capture="ops"), failure:
        fails(tf.constant(float("nan")))
    assert count.numpy() == 1


def trained(path: Path | None, **settings: Any) -> list[bytes]:
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)])
    optimizer = keras.optimizers.Adam(0.01)

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables,
                strict=True)
        )  # fmt: skip
        return loss

    x = tf.random.stateless_normal([16, 4], [1, 2])
    y = tf.random.stateless_normal([16, 2], [3, 4])
    if path is None:
        losses = [train_step(x, y).numpy() for _ in range(5)]
    else:
        with guard(path, **settings):
            losses = [train_step(x, y).numpy() for _ in range(5)]
    return [*(loss.tobytes() for loss in losses), *(v.numpy().tobytes() for v in model.variables)]


@both
def test_training_is_bit_identical_where_nothing_is_fused(tmp_path: Path, engine: str) -> None:
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"remapping": False})
    try:
        plain = trained(None)
        assert trained(tmp_path, capture="ops", engine=engine) == plain
    finally:
        tf.config.optimizer.set_experimental_options({"remapping": before.get("remapping", True)})


def test_without_a_compiler_the_records_are_the_same(tmp_path: Path) -> None:
    code = """
import sys, tensorflow as tf, tracelens as tl
@tf.function
def compute(x):
    return tf.reduce_sum(tf.exp(tf.matmul(x, x)))
with tl.trace(sys.argv[1], capture="ops", quiet=True):
    compute(tf.constant([[1.0, 2.0], [0.5, 0.25]]))
for op in tl.load(sys.argv[1]).ops:
    if op.name in ("MatMul", "Exp", "Sum"):
        print(op.name, op.source.line, op.outputs[0].shape, op.outputs[0].stats)
"""
    outputs = []
    for place, settings in enumerate(
        ({}, {"CXX": "/nonexistent", "TRACELENS_CACHE": str(tmp_path / "cache")})
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"{place}.tltrace")],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **settings},
            capture_output=True,
            text=True,
            timeout=240,
        )
        outputs.append(done.stdout)
        assert done.returncode == 0, done.stderr
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 3


def test_one_process_with_both_frameworks_gives_one_trace_without_a_clash(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    @tf.function
    def compute(x):
        return tf.exp(x) + 1.0

    with guard(tmp_path, capture="ops") as session:
        for _ in range(3):
            compute(tf.constant([1.0, 2.0]))
            (torch.ones(3) * 2.0).sum()
            tf.constant([1.0]) * 3.0
    ops = ops_of(session)
    ids = [op.op_id for op in ops]
    assert len(ids) == len(set(ids))
    assert len(named(ops, "Exp")) == 3 and len(named(ops, "aten::sum")) == 3
