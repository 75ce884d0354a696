"""The Keras callback: numbers of steps, scalars of epochs, validation, a second ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import Recorded, line_of, place_of

from tracelens import session as sessions

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
TraceCallback = pytest.importorskip("tracelens_tensorflow.callbacks").TraceCallback


@keras.saving.register_keras_serializable("tests")
class Root(keras.layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        return x if training else tf.sqrt(-tf.abs(x))  # validation


def model_of(*layers: Any) -> Any:
    keras.utils.set_random_seed(1)
    stack = [keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), *layers]
    model = keras.Sequential([*stack, keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"], jit_compile=False)
    return model


def data_of(batches: int) -> tuple[Any, Any]:
    x = np.random.default_rng(0).random((8 * batches, 4), dtype=np.float32)
    return x, x.sum(axis=1, keepdims=True)


def fit(model: Any, *callbacks: Any, **how: Any) -> Any:
    given = {"epochs": 2, "validation_data": data_of(2), **how}
    return model.fit(*data_of(4), batch_size=8, verbose=0, callbacks=list(callbacks), **given)


def test_epochs_leave_their_scalars_and_steps_go_on_counting(tmp_path: Path) -> None:
    model = model_of()
    callback = TraceCallback(tmp_path / "run.tltrace", quiet=True)
    history = fit(model, callback).history
    trace = Recorded(tmp_path / "run.tltrace")
    assert trace.errors == [] and trace.failures == []
    assert trace.numbers() == list(range(8))
    assert None not in trace.scalar("loss") and None not in trace.scalar("mae")
    found = trace.scalar("val_loss")
    assert (found[3], found[7]) == pytest.approx(tuple(history["val_loss"]))
    assert trace.scalar("learning_rate")[7] == pytest.approx(0.001)
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    fit(resumed, callback, epochs=3, initial_epoch=2)
    assert Recorded(tmp_path / "run-2.tltrace").numbers() == [8, 9, 10, 11]
    assert sessions.current() is None


def test_weights_are_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    plain, seen = model_of(), model_of()
    keras.utils.set_random_seed(2)
    fit(plain)
    keras.utils.set_random_seed(2)
    fit(seen, TraceCallback(tmp_path / "run.tltrace", quiet=True))
    pairs = zip(plain.get_weights(), seen.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_nan_of_validation_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    fit(model_of(Root()), TraceCallback(path, quiet=True))
    first = Recorded(path).errors[0]
    assert place_of(first) == (Path(__file__).name, line_of(Root, "# validation"))
    assert first["sink"]["during"] == "validation"


def test_a_metric_that_stays_bad_is_no_new_finding(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    fit(model_of(Root()), TraceCallback(path, quiet=True), epochs=3)
    trace = Recorded(path)
    assert [value for value in trace.scalar("val_loss") if value is not None] == ["NaN"] * 3
    assert "val_loss" not in {finding["sink"]["name"] for finding in trace.errors}


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_evaluate_and_predict_are_recorded_by_themselves(tmp_path: Path, method: str) -> None:
    x, y = data_of(2)
    given = (x, y) if method == "evaluate" else (x,)
    path, callback = tmp_path / "run.tltrace", TraceCallback(tmp_path / "run.tltrace", quiet=True)
    getattr(model_of(Root()), method)(*given, verbose=0, callbacks=[callback])
    first = Recorded(path).errors[0]
    assert place_of(first) == (Path(__file__).name, line_of(Root, "# validation"))
    assert sessions.current() is None


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_an_exception_of_validation_ends_the_recording(tmp_path: Path, method: str) -> None:
    callback = TraceCallback(tmp_path / "run.tltrace", nonfinite="raise", quiet=True)
    model = model_of(Root())
    with pytest.raises(FloatingPointError):
        if method == "fit":
            fit(model, callback)
        else:
            model.evaluate(*data_of(2), verbose=0, callbacks=[callback])
    assert sessions.current() is None
    with pytest.raises(FloatingPointError):
        model.predict(data_of(1)[0], verbose=0, callbacks=[callback])
    assert Recorded(tmp_path / "run-2.tltrace").errors


def test_a_nan_of_a_compiled_model_that_its_first_predict_builds_has_a_line(
    tmp_path: Path,
) -> None:
    model = keras.Sequential([keras.layers.Dense(2), Root()])
    model.compile("sgd", "mse", jit_compile=True)
    callback = TraceCallback(tmp_path / "run.tltrace", quiet=True)
    model.predict(data_of(1)[0], verbose=0, callbacks=[callback])
    first = Recorded(tmp_path / "run.tltrace").errors[0]
    assert place_of(first) == (Path(__file__).name, line_of(Root, "# validation"))
