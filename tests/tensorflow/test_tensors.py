"""``capture="tensors"``: values of taps, layers and gradients; taps and checks inside functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from guarded import code_of, guard, notes

import tracelens as tl
from tracelens.errors import NonFiniteError, TraceError


def model_of() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.layers.Dense(4, name="enc"), keras.layers.Dense(1, name="head")]
    )
    model(tf.ones([2, 3]))
    return model


@pytest.mark.parametrize("traced", [False, True])
def test_layers_taps_and_gradients_are_stored_by_name(tmp_path: Path, traced: bool) -> None:
    model = model_of()

    def train_step(x):
        with tf.GradientTape() as tape:
            logits = tl.tap(model(x), "logits")
            loss = tf.reduce_mean(tf.square(logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        return logits, gradients[0]

    step = tf.function(train_step) if traced else train_step
    with guard(tmp_path, capture="tensors") as session:
        for scale in (1.0, 2.0):
            logits, gradient = step(tf.ones([2, 3]) * scale)
            session.step()
    trace = tl.load(session.path)
    np.testing.assert_array_equal(trace.tensor("logits", step=1), logits)
    np.testing.assert_array_equal(trace.tensor("head/out", step=1), logits)
    assert trace.tensor("enc/out", step=0).shape == (2, 4)
    name = f"{model.trainable_variables[0].path}.grad"
    np.testing.assert_array_equal(trace.tensor(name, step=1), gradient)
    assert notes(session, "hook_failed") == []


def test_patterns_and_the_budget_bound_what_is_stored(tmp_path: Path) -> None:
    with guard(tmp_path, capture="tensors", tensors=["wanted*"], tensor_budget_bytes=40) as session:
        tl.tap(tf.ones([8]), "other")
        tl.tap(tf.ones([8]), "wanted/a")
        tl.tap(tf.ones([8]), "wanted/b")
    trace = tl.load(session.path)
    assert trace.tensor("wanted/a").shape == (8,)
    for name in ("other", "wanted/b"):
        with pytest.raises(TraceError):
            trace.tensor(name)
    assert any("budget" in note for note in notes(session, "drop"))


def test_ops_of_a_function_are_stored_where_a_pattern_names_them(tmp_path: Path) -> None:
    @tf.function
    def compute(x):
        return tf.exp(tf.sqrt(x, name="root"))

    with guard(tmp_path, capture="tensors", tensors=["*root*"]) as session:
        compute(tf.constant([4.0, 9.0]))
    np.testing.assert_array_equal(tl.load(session.path).tensor("root"), [2.0, 3.0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64", "int32", "bool"])
def test_each_dtype_comes_back_as_it_was(tmp_path: Path, dtype: str) -> None:
    value = tf.cast(tf.constant([[1, 0], [3, 1]]), dtype)
    with guard(tmp_path, capture="tensors") as session:
        tl.tap(value, "value")
    back = tl.load(session.path).tensor("value")
    np.testing.assert_array_equal(np.asarray(back, "complex64"), tf.cast(value, "complex64"))


@pytest.mark.parametrize("capture", ["guard", "ops", "tensors"])
def test_a_tap_inside_a_function_is_a_sink(tmp_path: Path, capture: str) -> None:
    @tf.function
    def compute(x):
        hidden = tl.tap(tf.math.log(x), "hidden")  # here
        return tf.reduce_sum(tf.where(tf.math.is_finite(hidden), hidden, 0.0))

    with guard(tmp_path, capture=capture) as session:
        compute(tf.constant([1.0, 2.0]))
        compute(tf.constant([-1.0, 2.0]))
    found = [f for f in session.findings if f["sink"]["sink"] == "tap"]
    assert [f["sink"]["name"] for f in found] == ["hidden"]
    assert "# here" in code_of(found[0])


def test_a_tap_changes_no_result_and_no_op(tmp_path: Path) -> None:
    def compute(x, look):
        y = tf.exp(x)
        return tf.reduce_sum(tl.tap(y, "y") if look else y)

    with guard(tmp_path):
        plain = tf.function(lambda x: compute(x, False)).get_concrete_function(tf.ones([3]))
        tapped = tf.function(lambda x: compute(x, True)).get_concrete_function(tf.ones([3]))
        assert [op.type for op in plain.graph.get_operations()] == [
            op.type for op in tapped.graph.get_operations()
        ]


@pytest.mark.parametrize("capture", ["guard", "ops"])
def test_a_check_inside_a_function_is_told_when_the_call_ends(tmp_path: Path, capture: str) -> None:
    @tf.function
    def compute(x):
        y = tl.check(tf.math.log(x), "middle")
        return tf.where(tf.math.is_finite(y), y, 0.0)

    with guard(tmp_path, capture=capture, nonfinite="raise"):
        compute(tf.constant([1.0]))
        with pytest.raises(NonFiniteError, match="middle"):
            compute(tf.constant([-1.0]))
