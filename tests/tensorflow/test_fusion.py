"""Fused kernels hide a NaN: the program's own values stay, and the report tells both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tracelens as tl
from tracelens_tensorflow import fusion

NAN = float("nan")
BAD = tf.constant([[-1.0, 1.0], [1.0, 2.0]])


def dense(x: Any, w: Any, b: Any) -> Any:
    return tf.nn.relu(tf.nn.bias_add(tf.matmul(x, w), b))


def summed(x: Any, w: Any, b: Any) -> Any:
    return tf.nn.relu6(tf.matmul(x, w) + b)


def convolved(x: Any, w: Any, b: Any) -> Any:
    images, filters = tf.reshape(x, [1, 2, 2, 1]), tf.reshape(w[0], [1, 1, 1, 2])
    return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(images, filters, 1, "SAME"), b))


def normalized(x: Any, w: Any, b: Any) -> Any:
    images, filters = tf.reshape(x, [1, 2, 2, 1]), tf.reshape(w[0], [1, 1, 1, 2])
    y = tf.nn.conv2d(images, filters, 1, "SAME")
    made = tf.compat.v1.nn.fused_batch_norm(
        y, b + 1.0, b, mean=b, variance=b + 1.0, is_training=False
    )
    return tf.nn.relu(made[0])


@pytest.mark.parametrize("function", [dense, summed, convolved, normalized])
def test_the_graph_hides_what_eager_keeps_and_watching_changes_neither(
    function: Any, tmp_path: Path
) -> None:
    x, w, b = tf.constant([[NAN, 1.0], [1.0, 2.0]]), tf.ones([2, 2]), tf.zeros([2])
    plain = tf.function(function)(x, w, b).numpy()
    assert np.isnan(function(x, w, b)).any()
    assert not np.isnan(plain).any()
    with tl.trace(tmp_path / "t.tltrace", quiet=True):
        watched = tf.function(function)(x, w, b).numpy()
    assert watched.tobytes() == plain.tobytes()


@pytest.mark.parametrize("activation", [tf.nn.elu, tf.tanh, tf.nn.leaky_relu])
def test_other_activations_are_no_pattern(activation: Any) -> None:
    @tf.function
    def f(x: Any) -> Any:
        return activation(tf.nn.bias_add(tf.matmul(x, x), x[0]))

    graph = f.get_concrete_function(tf.TensorSpec([2, 2])).graph
    assert list(fusion.patterns(graph.get_operations())) == []
    assert np.isnan(f(tf.constant([[NAN, 1.0], [1.0, 2.0]]))).any()


def test_a_value_that_is_read_twice_is_not_fused() -> None:
    @tf.function
    def f(x: Any) -> Any:
        y = tf.matmul(x, x) + x[0]
        return tf.nn.relu(y) + y

    graph = f.get_concrete_function(tf.TensorSpec([2, 2])).graph
    assert list(fusion.patterns(graph.get_operations())) == []
    assert (
        fusion.remarks(graph, next(o for o in graph.get_operations() if o.type == "Relu")) is None
    )


def test_every_op_of_a_pattern_is_remarked_on() -> None:
    @tf.function
    def f(x: Any) -> Any:
        return dense(x, x, x[0])

    graph = f.get_concrete_function(tf.TensorSpec([2, 2])).graph
    told = {
        op.type: fusion.remarks(graph, op)
        for op in graph.get_operations()
        if op.type in ("MatMul", "BiasAdd", "Relu", "StridedSlice")
    }
    assert told.pop("StridedSlice") is None
    assert len(set(told.values())) == 1
    line = dense.__code__.co_firstlineno + 1
    assert f"fuses MatMul + BiasAdd + Relu at line {line} into" in str(told["Relu"])


def test_the_report_says_that_the_program_computed_zero(tmp_path: Path) -> None:
    w, b = tf.Variable(tf.ones([2, 2])), tf.Variable(tf.zeros([2]))

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(dense(tf.math.log(x), w, b))  # bad
        for variable, gradient in zip([w, b], tape.gradient(loss, [w, b]), strict=True):
            variable.assign_sub(gradient)
        return loss

    with tl.trace(tmp_path / "t.tltrace", quiet=True):
        assert np.isfinite(step(BAD))
    found = [
        each for each in tl.load(tmp_path / "t.tltrace").findings if each["severity"] == "error"
    ]
    assert found[0]["first_cause"]["op"] == "Log"
    assert found[0]["first_cause"]["source"]["code"].endswith("# bad")
    assert not found[0]["exact"]
    assert any("the program computed 0 where the replay shows NaN" in d for d in found[0]["doubts"])


def test_recording_every_op_says_that_it_keeps_them_apart(tmp_path: Path) -> None:
    x = tf.constant([[NAN, 1.0], [1.0, 2.0]])
    with tl.trace(tmp_path / "t.tltrace", quiet=True, capture="ops"):
        step = tf.function(lambda x: dense(x, x, tf.zeros([2])))
        assert np.isnan(step(x)).any()
        step(x)
    notes = [e for e in tl.load(tmp_path / "t.tltrace").reader.notes() if e["kind"] == "fusion"]
    assert len(notes) == 1
    assert "MatMul + BiasAdd + Relu" in notes[0]["message"]
