"""Guard level on `tf.function`: nested calls, control flow, gradients, XLA, SavedModel."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from guarded import code_of, errors, guard, notes, steps

import tracelens as tl
from tracelens.errors import NonFiniteError

ENGINES = (None, "python")


def good() -> Any:
    return tf.constant([1.0, 2.0])


def bad() -> Any:
    return tf.constant([0.0, 2.0])


def minus() -> Any:
    return tf.constant([-1.0, 2.0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_in_a_traced_step_is_named_with_its_line_and_step(
    tmp_path: Path, engine: str | None
) -> None:
    weight = tf.Variable([0.5, 0.5], name="weight")

    @tf.function
    def train_step(x):
        with tf.GradientTape() as tape:
            y = tf.math.log(x)  # here
            loss = tf.reduce_sum(y * weight)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with guard(tmp_path, engine=engine) as session:
        for step in range(6):
            train_step(bad() if step == 4 else good())
    first = errors(session)[0]
    assert code_of(first) == "y = tf.math.log(x)  # here"
    assert first["first_cause"]["op"] == "Log"
    assert first["step"] == 4
    assert first["exact"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_clean_run_finds_nothing_and_counts_its_steps(tmp_path: Path, engine: str | None) -> None:
    weight = tf.Variable(1.0)

    @tf.function
    def train_step(x):
        weight.assign_add(tf.reduce_sum(x))

    with guard(tmp_path, engine=engine) as session:
        for _ in range(5):
            train_step(good())
    assert session.findings == []
    assert len(steps(session)) == 5
    assert notes(session, "hook_failed") == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_in_a_nested_function_is_named(tmp_path: Path, engine: str | None) -> None:
    @tf.function
    def inner(x):
        return tf.sqrt(x)  # here

    @tf.function
    def middle(x):
        return inner(x) + 1.0

    @tf.function
    def outer(x):
        return middle(x) * 2.0

    with guard(tmp_path, engine=engine) as session:
        outer(good())
        outer(minus())
    assert code_of(errors(session)[0]) == "return tf.sqrt(x)  # here"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_in_a_while_body_names_its_line(tmp_path: Path, engine: str | None) -> None:
    @tf.function
    def loop(x):
        for _ in tf.range(4):
            x = tf.sqrt(x - 1.0)  # here
        return x

    with guard(tmp_path, engine=engine) as session:
        loop(tf.constant([9.0]))
    first = errors(session)[0]
    assert code_of(first) == "x = tf.sqrt(x - 1.0)  # here"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_in_the_gradient_of_a_while_body_names_its_line(
    tmp_path: Path, engine: str | None
) -> None:
    weight = tf.Variable([0.0, 1.0])

    @tf.function
    def train_step():
        with tf.GradientTape() as tape:
            x = weight
            for _ in tf.range(2):
                x = tf.sqrt(x)  # here
            loss = tf.reduce_sum(x)
        gradient = tape.gradient(loss, weight)
        weight.assign_sub(gradient)
        return loss

    with guard(tmp_path, engine=engine) as session:
        train_step()
    first = errors(session)[0]
    assert code_of(first) == "x = tf.sqrt(x)  # here"
    assert first["first_cause"]["phase"] == "backward"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("taken", (True, False))
def test_a_nan_in_either_branch_names_its_line(
    tmp_path: Path, engine: str | None, taken: bool
) -> None:
    @tf.function
    def branch(x, flag):
        if flag:
            y = tf.math.log(x)  # then
        else:
            y = tf.math.sqrt(x)  # else
        return y

    with guard(tmp_path, engine=engine) as session:
        branch(minus(), tf.constant(taken))
    assert code_of(errors(session)[0]).endswith("# then" if taken else "# else")


def test_nans_in_case_map_fn_and_scan_are_named(tmp_path: Path) -> None:
    def root(x):
        return tf.sqrt(x)  # root

    @tf.function
    def case(x, which):
        return tf.switch_case(which, [lambda: x + 1.0, lambda: root(x)])

    @tf.function
    def mapped(x):
        return tf.map_fn(lambda e: tf.math.log(e), x)  # mapped

    @tf.function
    def scanned(x):
        return tf.scan(lambda a, e: tf.math.sqrt(a - e), x)  # scanned

    with guard(tmp_path) as session:
        case(minus(), tf.constant(1))
        mapped(bad())
        scanned(tf.constant([1.0, 5.0]))
    assert [code_of(e).rpartition("# ")[2] for e in errors(session)] == [
        "root",
        "mapped",
        "scanned",
    ]


def test_a_masked_nan_is_no_failure_and_keeps_no_one_waiting(tmp_path: Path) -> None:
    @tf.function
    def masked(x):
        return tf.where(x > 0, tf.math.log(x), tf.zeros_like(x))

    with guard(tmp_path, nonfinite="raise") as session:
        for _ in range(40):
            masked(bad())
    assert errors(session) == []


def test_a_written_infinity_alarms_nobody(tmp_path: Path) -> None:
    @tf.function
    def attention(scores, mask):
        scores = scores + tf.where(mask, 0.0, float("-inf"))
        return tf.nn.softmax(scores)

    with guard(tmp_path, nonfinite="raise") as session:
        attention(tf.constant([[1.0, 2.0, 3.0]]), tf.constant([[True, False, True]]))
    assert errors(session) == []


@pytest.mark.parametrize("mode", ("decorated", "block"))
def test_raise_reaches_the_users_frame_at_the_call_that_tripped(tmp_path: Path, mode: str) -> None:
    weight = tf.Variable([1.0, 1.0])

    @tf.function
    def train_step(x):
        weight.assign(weight * tf.math.log(x))

    reached = []
    call = tl.trace(train_step) if mode == "decorated" else train_step
    with pytest.raises(NonFiniteError, match="Log") as caught:
        with guard(tmp_path, nonfinite="raise"):
            for step in range(5):
                reached.append(step)
                call(bad() if step == 2 else good())
    assert reached == [0, 1, 2]
    assert any(entry.path == Path(__file__) for entry in caught.traceback)


def test_warn_points_at_the_users_line(tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 1.0])

    @tf.function
    def train_step(x):
        weight.assign(tf.math.log(x))

    with (
        pytest.warns(tl.NonFiniteWarning, match="Log") as caught,
        guard(tmp_path, nonfinite="warn"),
    ):
        train_step(bad())
    assert caught[0].filename == __file__


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_under_xla_is_named(tmp_path: Path, engine: str | None) -> None:
    weight = tf.Variable([0.5, 0.5])

    @tf.function(jit_compile=True)
    def train_step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.math.log(x) * weight)  # here
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with guard(tmp_path, engine=engine) as session:
        train_step(good())
        train_step(bad())
    first = errors(session)[0]
    assert code_of(first).endswith("# here")
    assert first["step"] == 1


def test_control_flow_under_xla_is_checked(tmp_path: Path) -> None:
    @tf.function(jit_compile=True)
    def loop(x, flag):
        for _ in tf.range(3):
            x = tf.sqrt(x - 1.0)  # loop
        if flag:
            x = tf.math.log(x)
        else:
            x = x * 2.0
        return x

    with guard(tmp_path) as session:
        loop(tf.constant([100.0]), tf.constant(False))
        loop(tf.constant([4.0]), tf.constant(False))
    (first, *_) = errors(session)
    assert code_of(first).endswith("# loop")


def test_a_function_traced_before_the_session_is_checked(tmp_path: Path) -> None:
    @tf.function
    def before(x):
        return tf.math.log(x)  # here

    before(good())
    with guard(tmp_path) as session:
        before(bad())
    assert code_of(errors(session)[0]).endswith("# here")
    assert before.experimental_get_tracing_count() == 1


def test_a_saved_model_is_checked_when_it_is_called(tmp_path: Path) -> None:
    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([2], tf.float32)])
        def __call__(self, x):
            return tf.math.log(x)

    tf.saved_model.save(Model(), str(tmp_path / "saved"))
    model = tf.saved_model.load(str(tmp_path / "saved"))
    with guard(tmp_path) as session:
        model(good())
        model(bad())
        model.signatures["serving_default"](x=bad())
    assert errors(session)[0]["first_cause"]["op"] == "Log"


def test_gradients_of_a_function_called_under_an_eager_tape_are_checked(tmp_path: Path) -> None:
    weight = tf.Variable([0.0, 1.0])

    @tf.function
    def forward(w):
        return tf.reduce_sum(tf.sqrt(w))  # here

    with guard(tmp_path) as session:
        with tf.GradientTape() as tape:
            loss = forward(weight)
        tape.gradient(loss, weight)
    found = errors(session)
    assert found and code_of(found[0]).endswith("# here")


def test_tapes_of_every_kind_and_custom_gradients_are_checked(tmp_path: Path) -> None:
    @tf.custom_gradient
    def clipped(x):
        def backward(upstream):
            return upstream / (x - x)  # custom

        return x * 1.0, backward

    @tf.function
    def custom(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = clipped(x)
        return tape.gradient(y, x)

    @tf.function
    def second(x):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(x**1.5)  # second
            first = inner.gradient(y, x)
        return outer.gradient(first, x)

    @tf.function
    def forward_mode(x):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = tf.sqrt(x)  # forward
        return accumulator.jvp(y)

    with guard(tmp_path) as session:
        custom(good())
        second(bad())
        forward_mode(bad())
    lines = [code_of(e).rpartition("# ")[2] for e in errors(session)]
    assert list(dict.fromkeys(lines)) == ["custom", "second", "forward"]


def test_bad_arguments_are_named_as_the_steps_input(tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 1.0])

    @tf.function
    def train_step(x):
        weight.assign_add(x)

    with guard(tmp_path) as session:
        train_step(tf.constant([np.nan, 1.0]))
    assert errors(session)[0]["first_cause"]["origin"] in ("data", "outside")


def test_nothing_is_left_behind_when_the_session_ends(tmp_path: Path) -> None:
    from tensorflow.python.eager import backprop
    from tensorflow.python.eager.polymorphic_function import atomic_function

    before = (atomic_function.AtomicFunction.call_flat, backprop.GradientTape.gradient)

    @tf.function
    def step(x):
        return tf.math.log(x)

    with guard(tmp_path):
        step(good())
        concrete = step.get_concrete_function(good())
    after = (atomic_function.AtomicFunction.call_flat, backprop.GradientTape.gradient)
    assert after == before
    assert "_tracelens_part" not in vars(concrete._inference_function)
    assert np.isneginf(step(bad()).numpy()[0])


def test_a_second_session_checks_the_same_function_again(tmp_path: Path) -> None:
    @tf.function
    def step(x):
        return tf.math.log(x)

    for number in range(3):
        with guard(tmp_path / str(number)) as session:
            step(good())
            step(bad())
        assert len(errors(session)) == 1


def test_functions_and_their_graphs_die_with_the_program_objects(tmp_path: Path) -> None:
    with guard(tmp_path):

        @tf.function
        def step(x):
            return tf.math.log(x)

        step(good())
        graph = weakref.ref(step.get_concrete_function(good()).graph)
        del step
        gc.collect()
        for _ in range(3):
            tf.function(lambda x: x + 1.0)(good())
        gc.collect()
    gc.collect()
    assert graph() is None


def test_an_exception_of_the_program_passes_unchanged(tmp_path: Path) -> None:
    @tf.function
    def step(x):
        tf.debugging.assert_less(x, 1.5)
        return x * 2.0

    def told() -> str:
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            step(good())
        return str(caught.value.message)

    plain = told()
    with guard(tmp_path):
        traced = told()
    assert "assert_less" in traced
    assert traced.splitlines()[:3] == plain.splitlines()[:3]


def test_a_broken_hook_is_a_note_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracelens_tensorflow import replay, twin

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    @tf.function
    def step(x):
        return tf.math.log(x)

    monkeypatch.setattr(twin.Builder, "build", broken)
    with guard(tmp_path / "a") as session:
        step(good())
    assert any("broken on purpose" in message for message in notes(session, "hook_failed"))
    monkeypatch.undo()
    monkeypatch.setattr(replay.Replayer, "before_call", broken)
    with guard(tmp_path / "b") as session:
        assert np.isfinite(step(good()).numpy()).all()
    assert any("broken on purpose" in message for message in notes(session, "hook_failed"))


def test_a_function_traced_before_can_be_traced_again_to_know_its_loss(tmp_path: Path) -> None:
    from tracelens_tensorflow import retrace

    weight = tf.Variable([0.5, 0.5])

    @tf.function
    def train_step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.math.log(x) * weight)  # here
        weight.assign_sub(0.1 * tape.gradient(loss, weight))

    train_step(good())
    with guard(tmp_path) as session:
        retrace(train_step)
        train_step(bad())
    first = errors(session)[0]
    assert code_of(first).endswith("# here")
    assert first["sink"]["sink"] == "loss"
    with pytest.raises(tl.TraceLensError, match=r"no tf\.function"):
        retrace(len)
