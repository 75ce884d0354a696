"""Guard level on Keras 3: fit, evaluate, predict, train_on_batch, XLA, mixed precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from guarded import code_of, errors, guard, notes, steps

from tracelens import session as sessions
from tracelens.errors import NonFiniteError
from tracelens.storage.reader import open_trace
from tracelens_tensorflow import TraceCallback


class Logarithm(keras.layers.Layer):
    def call(self, x):
        return tf.math.log(tf.nn.relu(x))  # here


def model_of(*layers: Any, **compiled: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Input((4,)), *layers, keras.layers.Dense(1)])
    model.compile("adam", "mse", **{"jit_compile": False, **compiled})
    return model


def data_of(batches: int = 4) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    x = generator.random((8 * batches, 4), dtype=np.float32)
    return x, x.sum(axis=1, keepdims=True)


HOW = {
    "fit": {},
    "xla": {"jit_compile": True},
    "several steps per execution": {"steps_per_execution": 2},
    "eagerly": {"run_eagerly": True},
}


@pytest.mark.parametrize("how", HOW)
def test_a_nan_in_a_layer_is_named_in_every_kind_of_fit(tmp_path: Path, how: str) -> None:
    model = model_of(keras.layers.Dense(8), Logarithm(name="logarithm"), **HOW[how])
    with guard(tmp_path) as session:
        model.fit(*data_of(), batch_size=8, epochs=1, verbose=0)
    first = errors(session)[0]
    assert code_of(first).endswith("# here")
    assert first["first_cause"]["op"] == "Log"
    assert first["first_cause"]["module"] == "logarithm"
    assert first["step"] == 0
    assert notes(session, "hook_failed") == []


@pytest.mark.parametrize("how", HOW)
def test_a_clean_fit_has_one_step_a_batch_with_its_losses(tmp_path: Path, how: str) -> None:
    model = model_of(keras.layers.Dense(8, activation="relu"), metrics=["mae"], **HOW[how])
    with guard(tmp_path) as session:
        history = model.fit(*data_of(), batch_size=8, epochs=2, verbose=0)
    found = [s for s in steps(session) if s["scalars"]]
    assert session.findings == []
    assert len(found) == (4 if how == "several steps per execution" else 8)
    assert found[-1]["scalars"]["loss"] == pytest.approx(history.history["loss"][-1], rel=1e-5)
    assert "mae" in found[-1]["scalars"]
    assert notes(session, "hook_failed") == []


def test_a_nan_in_the_data_is_named_as_data(tmp_path: Path) -> None:
    x, y = data_of()
    x[17, 2] = np.nan
    model = model_of(keras.layers.Dense(8))
    with guard(tmp_path) as session:
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    first = errors(session)[0]
    assert first["first_cause"]["origin"] == "data"
    assert first["step"] == 2
    assert first["exact"]


def test_evaluate_predict_and_train_on_batch_are_checked(tmp_path: Path) -> None:
    x, y = data_of()
    model = model_of(keras.layers.Dense(8), Logarithm())
    for number, use in enumerate(
        (
            lambda: model.evaluate(x, y, verbose=0),
            lambda: model.predict(x, verbose=0),
            lambda: model.train_on_batch(x, y),
            lambda: model(x[:2]),
        )
    ):
        with guard(tmp_path / str(number)) as session:
            use()
        if number < 3:
            assert code_of(errors(session)[0]).endswith("# here"), number


def test_a_custom_train_step_is_checked(tmp_path: Path) -> None:
    class Custom(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.sqrt(self(x) - y - 9.0))  # here
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    model = Custom()
    model.compile("sgd", jit_compile=False)
    with guard(tmp_path) as session:
        model.fit(*data_of(), batch_size=8, verbose=0)
    assert code_of(errors(session)[0]).endswith("# here")
    assert errors(session)[0]["sink"]["sink"] == "loss"


def test_an_overflow_of_the_scaled_loss_is_a_note_and_no_finding(tmp_path: Path) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1e-3), initial_scale=2.0**126
    )
    model = model_of(keras.layers.Dense(8))
    model.compile(optimizer, "mse", jit_compile=False)
    with guard(tmp_path, nonfinite="raise") as session:
        model.fit(*data_of(), batch_size=8, verbose=0)
    assert errors(session) == []
    assert notes(session, "overflow_handled")


def test_a_real_failure_under_loss_scaling_is_found(tmp_path: Path) -> None:
    model = model_of(keras.layers.Dense(8), Logarithm())
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3))
    model.compile(optimizer, "mse", jit_compile=False)
    with guard(tmp_path) as session:
        model.fit(*data_of(), batch_size=8, verbose=0)
    assert code_of(errors(session)[0]).endswith("# here")


def test_mixed_precision_trains_in_peace(tmp_path: Path) -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = model_of(keras.layers.Dense(8, activation="relu"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    with guard(tmp_path, nonfinite="raise") as session:
        model.fit(*data_of(), batch_size=8, epochs=2, verbose=0)
    assert errors(session) == []


def test_the_callback_records_a_fit_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "callback.tltrace"
    model = model_of(keras.layers.Dense(8), Logarithm())
    model.fit(*data_of(), batch_size=8, verbose=0, callbacks=[TraceCallback(path, quiet=True)])
    assert sessions.current() is None
    found = list(open_trace(path).events("finding"))
    assert code_of(found[0]).endswith("# here")


def test_the_callback_raises_out_of_fit_and_closes_its_session(tmp_path: Path) -> None:
    path = tmp_path / "callback.tltrace"
    model = model_of(keras.layers.Dense(8), Logarithm())
    callback = TraceCallback(path, nonfinite="raise", quiet=True)
    with pytest.raises(NonFiniteError, match="Log"):
        model.fit(*data_of(), batch_size=8, verbose=0, callbacks=[callback])
    assert sessions.current() is None


def test_keras_is_left_as_it_was_found(tmp_path: Path) -> None:
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    before = dict(vars(TensorFlowTrainer))
    model = model_of(keras.layers.Dense(8))
    with guard(tmp_path):
        model.fit(*data_of(), batch_size=8, verbose=0)
    assert dict(vars(TensorFlowTrainer)) == before
    assert not hasattr(model.train_function, "_tracelens_original")
    model.fit(*data_of(), batch_size=8, verbose=0)
    assert [weight.path for weight in model.optimizer.variables]


@pytest.mark.parametrize("broken", (False, True))
def test_loss_scaling_in_an_eager_loop_excuses_overflows_only(tmp_path: Path, broken: bool) -> None:
    model = model_of(keras.layers.Dense(8))
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1e-3), initial_scale=2.0 if broken else 2.0**127
    )
    optimizer.build(model.trainable_variables)
    x = tf.constant(data_of()[0] + 10.0)
    with guard(tmp_path) as session:
        for _ in range(3):
            with tf.GradientTape() as tape:
                predicted = model(x)
                zero = tf.reduce_sum(predicted * 0.0)
                loss = tf.sqrt(zero) if broken else tf.reduce_mean((predicted - 99.0) ** 2)  # here
                scaled = optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    assert len(steps(session)) == 3
    if broken:
        assert code_of(errors(session)[0]).endswith("# here")
    else:
        assert errors(session) == []
        assert notes(session, "overflow_handled")
