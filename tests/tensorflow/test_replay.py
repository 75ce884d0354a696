"""A bad call is run again exactly, names the op, and leaves the program as it was."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tracelens as tl

LINES = Path(__file__).read_text().splitlines()


def line_of(marker: str) -> int:
    """Return the number of the line that ends with a comment."""
    (line,) = [n for n, text in enumerate(LINES, 1) if text.endswith(f"# {marker}")]
    return line


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    keras.utils.set_random_seed(1)
    yield
    keras.backend.clear_session()


class Told:
    """What a session told."""

    def __init__(self, session: Any, notes: list[dict[str, Any]]) -> None:
        self.findings = session.findings
        self.notes = [note["message"] for note in notes if note["kind"] == "replay"]
        self.failures = [note["message"] for note in notes if note["kind"] == "hook_failed"]

    @property
    def cause(self) -> dict[str, Any]:
        """The first cause of the first finding."""
        assert self.findings, self.notes + self.failures
        return self.findings[0]["first_cause"]

    def names(self, op: str, marker: str) -> None:
        """Check that every finding is of an op on a line, and certain."""
        assert not self.failures, self.failures
        for finding in self.findings:
            cause = finding["first_cause"]
            assert (cause["op"], cause["source"]["line"]) == (op, line_of(marker)), finding
        assert self.findings and self.findings[0]["exact"], (self.findings, self.notes)


def traced(program: Callable[[], Any], path: Path) -> Told:
    """Run a program under a session."""
    notes: list[dict[str, Any]] = []
    path.mkdir(exist_ok=True)
    with tl.trace(path / "t.tltrace", quiet=True) as session:
        original = session.event

        def event(t: str, /, **fields: Any) -> None:
            if t == "note":
                notes.append(fields)
            original(t, **fields)

        session.event = event
        program()
    return Told(session, notes)


def test_a_nan_of_the_forward_is_named(tmp_path: Path) -> None:
    @tf.function
    def step(x: Any) -> Any:
        y = tf.math.log(x)  # log of a negative
        return tf.reduce_sum(y)

    told = traced(lambda: [step(tf.constant(v)) for v in ([1.0, 2.0], [1.0, -1.0])], tmp_path)
    told.names("Log", "log of a negative")
    assert told.cause["inputs"][0]["min"] == -1.0


def test_a_nan_of_the_backward_is_named(tmp_path: Path) -> None:
    w = tf.Variable([0.5, 0.0])

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sqrt(w * x))  # gradient of a root at zero
        gradient = tape.gradient(loss, w)
        w.assign_sub(0.1 * gradient)
        return loss

    told = traced(lambda: step(tf.constant([1.0, 1.0])), tmp_path)
    assert told.cause["phase"] == "backward"
    assert told.cause["source"]["line"] == line_of("gradient of a root at zero")


def test_a_nan_of_the_update_is_named(tmp_path: Path) -> None:
    w, scale = tf.Variable([1.0, 2.0]), tf.Variable([1.0, 0.0])

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w[0] * x)
        gradient = tf.convert_to_tensor(tape.gradient(loss, w))
        w.assign_sub(gradient / scale)  # nothing over nothing
        return loss

    told = traced(lambda: step(tf.constant(1.0)), tmp_path)
    told.names("RealDiv", "nothing over nothing")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_nan_in_a_loop_is_named_with_its_first_iteration(tmp_path: Path, compiled: bool) -> None:
    w = tf.Variable([1.0, 2.0])

    @tf.function(jit_compile=compiled)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            y = x * w
            for _ in tf.range(50):
                y = tf.sqrt(y - 0.5) + 0.1  # root of a negative
            loss = tf.reduce_sum(y)
        w.assign_sub(0.1 * tape.gradient(loss, w))
        return loss

    told = traced(lambda: step(tf.constant([1.0, 1.0])), tmp_path)
    told.names("Sqrt", "root of a negative")
    assert told.cause["inputs"][0]["nan"] == 0


def test_a_loop_that_goes_on_with_nan_does_not_lose_its_cause(tmp_path: Path) -> None:
    @tf.function
    def step(x: Any) -> Any:
        for i in tf.range(5_000):
            x = x + (tf.math.log(-x) if i == 3 else 1.0)  # once in a long loop
        return x

    told = traced(lambda: step(tf.constant(1.0)), tmp_path)
    told.names("Log", "once in a long loop")


def test_a_nan_in_a_branch_of_a_nested_call_is_named(tmp_path: Path) -> None:
    @tf.function
    def inner(x: Any) -> Any:
        if tf.reduce_sum(x) > 2.0:
            x = tf.acos(x)  # outside of its domain
        return x * 2.0

    @tf.function
    def outer(x: Any) -> Any:
        return tf.map_fn(inner, x)

    told = traced(lambda: outer(tf.constant([[1.0, 0.5], [3.0, 0.5]])), tmp_path)
    told.names("Acos", "outside of its domain")


def test_a_nan_in_fit_compiled_by_xla_is_named(tmp_path: Path) -> None:
    def shifted(x: Any) -> Any:
        return tf.math.log(x - 0.5)  # log in a compiled step

    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Lambda(shifted)]
    )
    model.compile("adam", "mse", jit_compile=True)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    told = traced(lambda: model.fit(x, x[:, :1], batch_size=8, verbose=0), tmp_path)
    told.names("Log", "log in a compiled step")


def test_a_bad_batch_is_told_as_data(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    x[20, 2] = np.nan
    told = traced(lambda: model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0), tmp_path)
    assert told.findings[0]["step"] == 2
    assert told.cause["origin"] == "data" and told.cause["op"] == "IteratorGetNext"


def test_calls_since_the_snapshot_are_repeated_exactly(tmp_path: Path) -> None:
    optimizer = keras.optimizers.Adam(0.05)
    w = tf.Variable(np.linspace(0.5, 1.5, 8).astype("float32"))
    optimizer.build([w])

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            noisy = tf.nn.dropout(w * x, 0.3)
            loss = tf.reduce_sum(tf.math.log(noisy + 0.4))  # log after many steps
        optimizer.apply(tape.gradient(loss, [w]), [w])
        return loss

    def program() -> None:
        for _ in range(60):
            step(tf.ones([8]))

    told = traced(program, tmp_path)
    told.names("Log", "log after many steps")
    assert "calls before it repeated" in told.notes[0]
    assert "replay equal" in told.notes[0]


def test_what_eager_code_writes_between_calls_is_written_again(tmp_path: Path) -> None:
    rate, w = tf.Variable(0.0), tf.Variable([4.0, 9.0])

    @tf.function
    def step() -> Any:
        w.assign_sub(rate * tf.ones([2]))
        return tf.reduce_sum(tf.sqrt(w))  # root after assigned rates

    def program() -> None:
        for n in range(40):
            rate.assign(0.006 * n)
            w.assign_add([0.0, 1.0])
            step()

    told = traced(program, tmp_path)
    told.names("Sqrt", "root after assigned rates")
    assert "replay equal" in told.notes[0], told.notes


def test_a_replay_changes_nothing_of_the_program(tmp_path: Path) -> None:
    def program(alarm: int) -> list[np.ndarray]:
        keras.utils.set_random_seed(7)
        generator = tf.random.Generator.from_seed(3)
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)]
        )
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)
        counter = tf.Variable(0)
        heard: list[float] = []
        batches = iter(tf.data.Dataset.from_tensor_slices(tf.random.normal([20, 2, 4])))

        @tf.function
        def step(batches: Any) -> Any:
            counter.assign_add(1)
            x = next(batches) + generator.normal([2, 4]) + tf.random.uniform([2, 4])
            tf.py_function(lambda v: heard.append(float(v[0, 0])), [x], [])
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x, training=True) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            # It alarms, and hands nothing bad on to the training.
            return loss, tf.math.log(tf.cast(counter % 3 + 1 - alarm, tf.float32))

        losses = [step(batches)[0].numpy() for _ in range(12)]
        state = [v.numpy() for v in [*model.variables, *optimizer.variables, generator.state]]
        drawn = [
            generator.normal([3]).numpy(),
            next(batches).numpy(),
            tf.random.uniform([3]).numpy(),
        ]
        return [*state, *drawn, counter.numpy(), np.array(losses), np.array(heard)]

    calm: list[list[np.ndarray]] = []
    alarmed: list[list[np.ndarray]] = []
    assert not traced(lambda: calm.append(program(0)), tmp_path / "calm").notes
    told = traced(lambda: alarmed.append(program(2)), tmp_path / "alarmed")
    assert told.findings and told.notes and not told.failures
    assert not any("impossible" in note for note in told.notes), told.notes
    for one, other in zip(calm[0], alarmed[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_comes_out_differently_is_said(tmp_path: Path) -> None:
    @tf.function(jit_compile=True)
    def step(x: Any) -> Any:
        for _ in tf.range(2):
            x = x - tf.random.uniform([])
        return tf.math.log(x)

    told = traced(lambda: step(tf.constant(-1.0)), tmp_path)
    assert told.cause["op"] == "Log" and not told.findings[0]["exact"]
    assert "RandomUniform" in told.findings[0]["doubts"][0]


def test_a_call_that_raised_is_not_repeated(tmp_path: Path) -> None:
    w = tf.Variable(1.0)

    @tf.function
    def step(x: Any) -> Any:
        w.assign_add(1.0)
        tf.debugging.assert_less(x, 5.0)
        w.assign_add(1.0)
        return tf.math.log(-w * x)  # after an error

    def program() -> None:
        step(tf.constant(-1.0))
        with pytest.raises(tf.errors.InvalidArgumentError):
            step(tf.constant(7.0))
        step(tf.constant(-1.0))
        step(tf.constant(1.0))

    told = traced(program, tmp_path)
    told.names("Log", "after an error")
    assert "replay equal" in told.notes[0], told.notes


def test_values_that_were_recorded_before_a_replay_are_known_after_it(tmp_path: Path) -> None:
    @tf.function
    def step(x: Any) -> Any:
        return tf.reduce_sum(tf.math.log(x))

    def program() -> None:
        x = tf.sqrt(tf.constant([-4.0, 4.0]))  # before the calls
        step(tf.constant([-1.0]))
        tl.check(x, "x")

    with pytest.raises(tl.NonFiniteError) as raised:
        traced(program, tmp_path)
    cause = raised.value.report["first_cause"]
    assert cause["source"]["line"] == line_of("before the calls")


def test_models_that_the_program_lets_go_of_are_not_kept_alive(tmp_path: Path) -> None:
    def train() -> weakref.ref[Any]:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])

        @tf.function
        def step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(x) ** 2)
            for v, g in zip(
                model.trainable_variables,
                tape.gradient(loss, model.trainable_variables),
                strict=True,
            ):
                v.assign_sub(0.01 * g)
            return loss

        for _ in range(3):
            step(tf.ones([1, 2]))
        return weakref.ref(model.trainable_variables[0].value.handle)

    def program() -> None:
        first = train()
        for _ in range(3):
            train()
            keras.backend.clear_session()
            gc.collect()
        assert first() is None

    assert not traced(program, tmp_path).findings
