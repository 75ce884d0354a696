"""``tl.guard`` around what TensorFlow serves: SavedModels, Keras models, traced functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import line_of, place_of

import tracelens as tl
from tracelens.serving_answers import Answers

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

told: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TRACELENS_DIR", str(tmp_path))
    fresh = Answers()
    monkeypatch.setattr("tracelens.serving.answers", fresh)
    told.clear()
    yield
    fresh.close()


class Scorer(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.ones((4, 2)))

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x: Any) -> Any:
        return {"score": tf.math.log(tf.matmul(x, self.weights))}  # here


@keras.saving.register_keras_serializable("tests")
class Logarithm(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.math.log(x)  # here


GOOD, BAD = np.ones((2, 4), np.float32), -np.ones((2, 4), np.float32)


def test_a_saved_model_names_the_request_and_the_op(tmp_path: Path) -> None:
    module = Scorer()
    signature = module.__call__.get_concrete_function()
    tf.saved_model.save(module, tmp_path / "saved", signatures={"serving_default": signature})
    loaded = tl.guard(tf.saved_model.load(tmp_path / "saved"), name="scorer", nonfinite=told.append)
    loaded(tf.constant(GOOD))
    loaded.signatures["serving_default"](x=tf.constant(GOOD))
    with tl.serving.request("a"):
        assert bool(tf.reduce_all(tf.math.is_nan(loaded(tf.constant(BAD))["score"])))
    with tl.serving.request("b"):
        loaded.signatures["serving_default"](x=tf.constant(BAD))
    assert [finding["sink"]["request"] for finding in told] == ["a", "b"]
    assert [finding["first_cause"]["op"] for finding in told] == ["Log", "Log"]


def test_a_traced_function_names_its_line() -> None:
    guarded = tl.guard(Scorer(), nonfinite=told.append)
    with tl.serving.request("a"):
        guarded(tf.constant(BAD))
    assert place_of(told[0]) == (Path(__file__).name, line_of(Scorer))
    assert told[0]["sink"]["name"] == "Scorer.score"


def test_calls_and_predictions_of_a_keras_model_are_answers() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), Logarithm()])
    guarded = tl.guard(model, nonfinite=told.append)
    assert isinstance(guarded, keras.Model)
    plain = model.predict(GOOD, verbose=0)
    assert np.array_equal(guarded.predict(GOOD, verbose=0), plain)
    with tl.serving.request("predict"):
        guarded.predict(BAD, verbose=0)
    with tl.serving.request("call"):
        guarded(BAD)
    assert [finding["sink"]["request"] for finding in told] == ["predict", "call"]
    for finding in told:
        assert place_of(finding) == (Path(__file__).name, line_of(Logarithm))
