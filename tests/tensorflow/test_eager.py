"""Eager ops: their lines, layers, phases and forward ops; what the program hands on and reads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from guarded import code_of, errors, guard, line_of, notes, steps

import tracelens as tl
from tracelens.errors import NonFiniteError
from tracelens.events import OpFlag, Phase


def ops_of(session: Any) -> list[Any]:
    return list(tl.load(session.path).ops)


def named(ops: list[Any], name: str) -> list[Any]:
    return [op for op in ops if op.name == name]


def test_ops_have_lines_values_and_statistics(tmp_path: Path) -> None:
    with guard(tmp_path, capture="ops") as session:
        x = tf.constant([1.0, 4.0])
        y = tf.sqrt(x)  # root
        (y + y) * 3.0
    ops = ops_of(session)
    (root,), (total,) = named(ops, "Sqrt"), named(ops, "AddV2")
    here = line_of(test_ops_have_lines_values_and_statistics, "# root")
    assert root.source.line == here and root.source.file == __file__
    assert [t.value_id for t in total.inputs] == [root.outputs[0].value_id] * 2
    stats = total.outputs[0].stats
    assert (stats.numel, stats.vmin, stats.vmax, stats.mean, stats.zero) == (2, 2.0, 4.0, 3.0, 0)
    assert root.duration_ns is not None and root.duration_ns > 0
    assert notes(session, "hook_failed") == []


def test_a_bad_gradient_names_the_forward_line_and_the_step(tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 4.0], name="weight")
    optimizer = keras.optimizers.SGD(0.1)
    with guard(tmp_path) as session:
        for step in range(4):
            with tf.GradientTape() as tape:
                root = tf.sqrt(weight * (0.0 if step == 2 else 1.0))  # here
                loss = tf.reduce_sum(root / (root + 1.0) / root)
            optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
    first = errors(session)[0]
    assert first["step"] == 2
    assert first["sink"]["sink"] in ("loss", "gradient")
    assert [step["step"] for step in steps(session)][:4] == [0, 1, 2, 3]


def test_backward_ops_are_tied_to_their_forward_ops(tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.layers.Dense(3, activation="relu", name="inner"),
            keras.layers.Dense(2, name="outer"),
        ]
    )
    x = tf.ones([4, 3])
    model(x)
    with guard(tmp_path, capture="ops") as session, tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x)))
        tape.gradient(loss, model.trainable_variables)
    ops = ops_of(session)
    by_id = {op.op_id: op for op in ops}
    forward = [op for op in named(ops, "MatMul") if op.phase is Phase.FORWARD]
    assert [op.module.rpartition("/")[2] for op in forward] == ["inner", "outer"]
    backward = [op for op in ops if op.phase is Phase.BACKWARD]
    tied = {op.name: by_id[op.fwd_op_id].name for op in backward if op.fwd_op_id >= 0}
    assert tied["ReluGrad"] == "Relu" and tied["BiasAddGrad"] in ("BiasAdd", "AddV2", "Add")
    products = [op for op in backward if op.name == "MatMul"]
    assert {by_id[op.fwd_op_id].op_id for op in products} == {op.op_id for op in forward}
    assert {op.module.rpartition("/")[2] for op in products} == {"inner", "outer"}
    assert {op.source.line for op in products} == {forward[0].source.line}


def test_persistent_and_nested_tapes_and_accumulators_work(tmp_path: Path) -> None:
    def numbers() -> list[Any]:
        x = tf.Variable([1.5, 2.5])
        with tf.GradientTape(persistent=True) as tape:
            y = tf.exp(x) * x
            z = tf.reduce_sum(y)
        first, again = tape.gradient(z, x), tape.gradient(z, x)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                w = tf.reduce_sum(x**3)
            slope = inner.gradient(w, x)
        second = outer.gradient(slope, x)
        with tf.autodiff.ForwardAccumulator(x, tf.ones([2])) as ahead:
            v = tf.sin(x) * x
        jacobian = None
        with tf.GradientTape() as tape:
            u = x * x
        jacobian = tape.jacobian(u, x)
        return [t.numpy() for t in (first, again, second, ahead.jvp(v), jacobian)]

    plain = numbers()
    with guard(tmp_path, capture="ops") as session:
        watched = numbers()
    for before, after in zip(plain, watched, strict=True):
        np.testing.assert_array_equal(before, after)
    assert notes(session, "hook_failed") == []
    assert errors(session) == []


def test_a_gradient_function_of_the_users_own_is_named_by_its_own_line(tmp_path: Path) -> None:
    @tf.custom_gradient
    def scaled(x):
        def grad(upstream):
            return upstream / (x - x)  # mine

        return x * 2.0, grad

    weight = tf.Variable([1.0, 2.0])
    with guard(tmp_path) as session:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(scaled(weight))
        weight.assign_sub(tape.gradient(loss, weight))
    first = errors(session)[0]
    assert "# mine" in code_of(first)
    assert first["first_cause"]["phase"] == "backward"


@pytest.mark.parametrize("capture", ["guard", "ops"])
def test_a_variable_that_goes_bad_is_a_sink_by_its_name(tmp_path: Path, capture: str) -> None:
    weight = tf.Variable([3.0e38], name="weight")
    with guard(tmp_path, capture=capture) as session:
        weight.assign_add(weight)  # overflows
    (first,) = errors(session)
    assert first["sink"]["sink"] == "parameter" and first["sink"]["name"] == "weight"
    assert first["first_cause"]["kind"] == "inf"
    assert "# overflows" in code_of(first)


def test_raise_stops_before_the_optimizer_applies_a_bad_gradient(tmp_path: Path) -> None:
    weight = tf.Variable([0.0, 4.0], name="weight")
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([weight])
    with pytest.raises(NonFiniteError) as raised, guard(tmp_path, nonfinite="raise"):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.math.log(weight))  # here
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
    assert "# here" in code_of(raised.value.report)
    np.testing.assert_array_equal(weight.numpy(), [0.0, 4.0])


def test_masked_values_are_no_findings(tmp_path: Path) -> None:
    x = tf.constant([-1.0, 4.0])
    with guard(tmp_path) as session:
        y = tf.where(x > 0.0, tf.math.log(x), 0.0)
        tf.Variable([1.0, 1.0]).assign(y)
    assert errors(session) == []


def test_ops_of_other_threads_are_recorded(tmp_path: Path) -> None:
    def work() -> None:
        tf.exp(tf.constant([1.0, 2.0]))

    with guard(tmp_path, capture="ops") as session:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = named(ops_of(session), "Exp")
    assert len(found) == 4 and len({op.tid for op in found}) == 4


def test_nothing_is_recorded_while_a_function_is_traced(tmp_path: Path) -> None:
    with guard(tmp_path, capture="ops") as session:

        @tf.function
        def compute(x):
            return tf.exp(tf.exp(x))

        compute.get_concrete_function(tf.TensorSpec([2], tf.float32))
    assert named(ops_of(session), "Exp") == []


def test_values_of_a_function_are_followed_into_eager_ops_and_back(tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 2.0])

    @tf.function
    def half(x):
        weight.assign(x * 0.5)
        return tf.exp(x)

    with guard(tmp_path, capture="ops") as session:
        y = half(tf.constant([1.0, 2.0]))
        tf.sqrt(y)
        tf.square(weight)
        half(y)
    ops = ops_of(session)
    first, second = named(ops, "Exp")
    (root,), (square,) = named(ops, "Sqrt"), named(ops, "Square")
    writes = named(ops, "AssignVariableOp")
    assert [t.value_id for t in root.inputs] == [first.outputs[0].value_id]
    assert [t.value_id for t in square.inputs] == [writes[0].outputs[0].value_id]
    assert [t.value_id for t in second.inputs] == [first.outputs[0].value_id]


def test_hooks_are_gone_after_the_session_and_errors_stay_the_programs(tmp_path: Path) -> None:
    from tensorflow.python import pywrap_tfe
    from tensorflow.python.eager import execute

    before = pywrap_tfe.TFE_Py_FastPathExecute, execute.execute
    with (
        guard(tmp_path),
        pytest.raises(tf.errors.InvalidArgumentError, match="Incompatible shapes"),
    ):
        tf.constant([1.0, 2.0]) + tf.constant([1.0, 2.0, 3.0])
    assert (pywrap_tfe.TFE_Py_FastPathExecute, execute.execute) == before


def test_guard_level_checks_and_keeps_no_statistics(tmp_path: Path) -> None:
    with guard(tmp_path) as session:
        tf.math.log(tf.constant([1.0, 2.0]))
        tl.tap(tf.math.log(tf.constant([0.0, -1.0])), "bad")
    assert errors(session)[0]["first_cause"]["op"] == "Log"
    good = next(op for op in ops_of(session) if op.name == "Log" and not op.flags & OpFlag.HIT)
    assert good.flags & OpFlag.CHECKED and good.outputs[0].stats is None


@pytest.mark.parametrize("read", [float, lambda t: t.numpy(), lambda t: f"{t:.2f}"])
def test_a_bad_scalar_that_the_program_reads_names_the_op_that_made_it(
    tmp_path: Path, read: Any
) -> None:
    with guard(tmp_path) as session:
        score = tf.reduce_mean(tf.math.log(tf.constant([1.0, -1.0])))  # made here
        read(score)
    first = errors(session)[0]
    assert first["sink"]["sink"] == "read"
    here = line_of(
        test_a_bad_scalar_that_the_program_reads_names_the_op_that_made_it, "# made here"
    )
    assert first["first_cause"]["op"] == "Log"
    assert first["first_cause"]["source"]["line"] == here


def test_reading_a_bad_scalar_raises_where_that_is_asked_for(tmp_path: Path) -> None:
    with guard(tmp_path, nonfinite="raise"):
        score = tf.sqrt(tf.constant(-1.0))
        with pytest.raises(NonFiniteError, match="Sqrt"):
            float(score)
    assert np.isnan(score.numpy())
