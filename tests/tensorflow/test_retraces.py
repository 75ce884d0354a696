"""Every retrace is a finding: what changed, where it was called, what it cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tracelens as tl
from tracelens.diagnosis import diagnose
from tracelens.overview import overview
from tracelens.storage.reader import open_trace
from tracelens_tensorflow import retraces


@pytest.fixture
def told(tmp_path: Path) -> Callable[[Callable[[], None]], list[dict[str, Any]]]:
    """Run a program under a session; return its findings of retraces."""

    def run(program: Callable[[], None]) -> list[dict[str, Any]]:
        path = tmp_path / "t.tltrace"
        with tl.trace(path, quiet=True):
            program()
        return [each for each in tl.load(path).findings if each["rule"] == "retrace"]

    return run


def causes(found: list[dict[str, Any]]) -> list[str]:
    return [each["message"].partition("): ")[2] for each in found]


def line_of(program: Callable[..., Any], marker: str) -> int:
    lines, first = inspect.getsourcelines(program)
    return first + next(at for at, line in enumerate(lines) if f"# {marker}" in line)


def test_a_first_trace_and_a_call_that_fits_are_no_findings(told: Any) -> None:
    @tf.function
    def f(x: Any) -> Any:
        return x + 1

    def program() -> None:
        f(tf.ones([2]))
        f(tf.zeros([2]))

    assert told(program) == []


def test_shape_dtype_and_python_value_are_told_with_the_arguments_name(told: Any) -> None:
    @tf.function
    def f(x: Any, scale: float = 1.0) -> Any:
        return x * tf.cast(scale, x.dtype)

    def program() -> None:
        f(tf.ones([2, 3]))
        f(tf.ones([4, 3]))  # shape
        f(tf.ones([4, 3], tf.float64))  # dtype
        f(tf.ones([4, 3]), 2.0)  # value

    found = told(program)
    assert causes(found) == [
        "shape of argument x is (4, 3), was (2, 3)",
        "dtype of argument x is float64, was float32",
        "Python value of argument scale is 2.0, was 1.0",
    ]
    assert [each["source"]["line"] for each in found] == [
        line_of(program, marker) for marker in ("shape", "dtype", "value")
    ]
    assert {each["source"]["file"] for each in found} == {__file__}
    assert "tf.TensorSpec([None, 3], tf.float32)" in found[0]["advice"]
    assert "tf.constant" in found[2]["advice"]
    assert [each["severity"] for each in found] == ["info", "warning", "warning"]
    assert all(each["duration_ns"] > 0 and each["n_ops"] > 1 for each in found)


def test_the_nearest_earlier_trace_is_compared_with(told: Any) -> None:
    @tf.function
    def f(x: Any, y: Any) -> Any:
        return tf.reduce_sum(x) + tf.reduce_sum(y)

    def program() -> None:
        f(tf.ones([2]), tf.ones([3]))
        f(tf.ones([4, 4]), tf.ones([5, 5]))
        f(tf.ones([2]), tf.ones([6]))

    assert causes(told(program))[-1] == "shape of argument y is (6,), was (3,)"


def test_parts_of_nested_arguments_are_named(told: Any) -> None:
    @tf.function
    def f(batch: Any) -> Any:
        return tf.reduce_sum(batch["x"][0])

    def program() -> None:
        f({"x": [tf.ones([2])]})
        f({"x": [tf.ones([3])]})
        f({"x": [tf.ones([3]), tf.ones([3])]})
        f({"x": [tf.ones([3])], "y": tf.ones([3])})

    assert causes(told(program)) == [
        "shape of argument batch['x'][0] is (3,), was (2,)",
        "argument batch['x'] is a list of 2, was a list of 1",
        "argument batch is a dict with keys 'x', 'y', was a dict with keys 'x'",
    ]


def test_another_object_is_told(told: Any) -> None:
    class Settings:
        def __init__(self, name: str) -> None:
            self.name = name

    @tf.function
    def f(x: Any, settings: Settings) -> Any:
        return x + 1

    def program() -> None:
        one, two = Settings("small"), Settings("large")
        f(tf.ones([2]), one)
        f(tf.ones([2]), two)

    assert causes(told(program)) == [
        "argument settings is another object: a Settings 'large', was a Settings 'small'"
    ]


def test_a_function_that_is_made_anew_in_a_loop_is_told(told: Any) -> None:
    def program() -> None:
        for _ in range(3):

            @tf.function
            def f(x: Any) -> Any:
                return x + 1

            f(tf.ones([2]))  # call

    found = told(program)
    assert causes(found) == ["a new tf.function was made of the same Python function"] * 2
    assert [each["traces"] for each in found] == [2, 3]
    assert found[0]["source"]["line"] == line_of(program, "call")
    assert "once, outside of the loop" in found[0]["advice"]


def test_methods_of_two_objects_and_variables_made_inside_are_no_retraces(told: Any) -> None:
    class Scale(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight: Any = None

        @tf.function
        def __call__(self, x: Any) -> Any:
            if self.weight is None:
                self.weight = tf.Variable(tf.ones([2]))
            return x * self.weight

    def program() -> None:
        for scale in (Scale(), Scale()):
            scale(tf.ones([2]))
            scale(tf.ones([2]))

    assert told(program) == []


def test_a_function_called_in_another_names_the_line_within(told: Any) -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return x + 1

    @tf.function
    def outer(x: Any) -> Any:
        y = inner(x)
        if tf.reduce_sum(y) > 0:
            y = inner(tf.concat([y, y], 0))[:2]  # within
        return y

    found = told(lambda: outer(tf.ones([2])))
    assert causes(found) == ["shape of argument x is (4,), was (2,)"]
    assert found[0]["source"]["line"] == line_of(outer.python_function, "within")


def test_the_last_small_batch_of_predict_is_told_as_harmless(told: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    x = np.ones((10, 4), "float32")

    def program() -> None:
        model.predict(x, batch_size=4, verbose=0)  # predict

    found = told(program)
    assert causes(found) == ["shape of argument data[0] is (None, 4), was (4, 4)"]
    assert found[0]["severity"] == "info"
    assert found[0]["source"]["line"] == line_of(program, "predict")
    assert found[0]["advice"].startswith("nothing, this trace takes every size")


def test_a_dataset_that_is_built_again_is_told(told: Any) -> None:
    def parse(x: Any) -> Any:
        return x + 1

    def program() -> None:
        for _ in range(2):
            list(tf.data.Dataset.range(2).map(parse))  # map

    found = told(program)
    assert causes(found) == ["a new tf.function was made of the same Python function"]
    assert found[0]["severity"] == "info"
    assert found[0]["function"].endswith("parse")
    assert found[0]["advice"] == "build the dataset once, and use it again"


def test_what_tracelens_retraces_itself_is_not_told(told: Any) -> None:
    @tf.function
    def f(x: Any) -> Any:
        return x + 1

    def program() -> None:
        f(tf.ones([2]))
        with retraces.quiet():
            f(tf.ones([3]))

    assert told(program) == []


def test_many_retraces_are_counted_after_some(tmp_path: Path) -> None:
    @tf.function
    def f(x: Any, n: int) -> Any:
        return x + n

    with tl.trace(tmp_path / "t.tltrace", quiet=True):
        for n in range(30):
            f(tf.ones([2]), n)
    trace = tl.load(tmp_path / "t.tltrace")
    assert len(trace.findings) == 19
    notes = [each for each in trace.reader.notes() if each["kind"] == "retrace"]
    assert [each["message"] for each in notes] == ["f was traced 10 more times than are listed"]


def test_a_retrace_is_listed_by_summary_and_leaves_the_verdict_alone(tmp_path: Path) -> None:
    @tf.function
    def f(x: Any) -> Any:
        return tf.math.log(x)

    path = tmp_path / "t.tltrace"
    with tl.trace(path, quiet=True, nonfinite="raise"):
        f(tf.ones([2]))
        f(tf.ones([3]))
    with open_trace(path) as reader:
        listed = overview(reader)["findings"]
        told = diagnose(reader)
    assert [(each["rule"], each["severity"]) for each in listed] == [("retrace", "info")]
    assert (told["verdict"], told["findings"]) == ("clean", [])


def test_a_bad_value_is_found_beside_a_retrace(tmp_path: Path) -> None:
    @tf.function
    def f(x: Any) -> Any:
        return tf.math.log(x)

    path = tmp_path / "t.tltrace"
    with tl.trace(path, quiet=True):
        f(tf.ones([2]))
        tl.check(tf.reduce_sum(f(tf.ones([3]))), "fine")
        f(-tf.ones([3]))
    with open_trace(path) as reader:
        told = diagnose(reader)
    assert told["verdict"] == "non-finite"
    assert told["first_cause"]["op"] == "Log"
    assert "retrace" not in {each["rule"] for each in told["findings"]}
