"""A graph run op by op gives what a call of it gives, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tracelens_tensorflow import interpreter, plans  # noqa: E402
from tracelens_tensorflow.interpreter import Interpreter, NotInterpretable  # noqa: E402


def interpreted(function: Any, *args: Any, on_op: Any = None) -> list[Any]:
    """Run a ``tf.function`` op by op; return its outputs as arrays."""
    concrete = function.get_concrete_function(*args)
    flat = [arg for arg in tf.nest.flatten(args) if isinstance(arg, tf.Tensor)]
    return interpreter.run(concrete.graph, [*flat, *concrete.captured_inputs], on_op)


def arrays(tensors: Any) -> list[np.ndarray]:
    return [np.asarray(tensor) for tensor in tensors]


def called(function: Any, *args: Any) -> list[np.ndarray]:
    concrete = function.get_concrete_function(*args)
    found = tf.nest.flatten(concrete(*args), expand_composites=True)
    return arrays(found)


@tf.custom_gradient
def clipped(x: Any) -> Any:
    return tf.identity(x), lambda upstream: tf.clip_by_value(upstream, -0.5, 0.5)


@tf.function
def inner(x: Any) -> Any:
    return clipped(x) * 2.0


@tf.function
def nested(x: Any) -> Any:
    return inner(x) + inner(x + 1.0)


@tf.function
def loop(x: Any) -> Any:
    for i in tf.range(5):
        x = tf.sin(x) + tf.cast(i, tf.float32)
    return x


@tf.function
def loop_that_breaks(x: Any) -> Any:
    for i in tf.range(100):
        if tf.reduce_sum(x) > 50.0:
            break
        if i % 2 == 0:
            continue
        x = x + 1.0
    return x


@tf.function
def loop_in_a_loop(x: Any) -> Any:
    for _ in tf.range(3):
        i = 0
        while i < 2:
            x, i = tf.cos(x), i + 1
    return x


@tf.function
def branches(x: Any) -> Any:
    y = x * 2.0 if tf.reduce_sum(x) > 0.0 else x - 1.0
    return tf.switch_case(tf.constant(5), [lambda: y, lambda: y * 3.0, lambda: -y])


@tf.function
def mapped(x: Any) -> Any:
    return tf.map_fn(lambda row: tf.reduce_sum(row) * row, x)


@tf.function
def arrays_of_tensors(x: Any) -> Any:
    array = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
    for i in tf.range(4):
        array = array.write(i, x * tf.cast(i, tf.float32))
    return array.stack(), array.read(2)


@tf.function
def gradient_of_a_loop(x: Any) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = x
        for _ in tf.range(4):
            y = tf.where(y > 0.0, tf.sqrt(tf.abs(y) + 1.0), tf.sin(y)) if y[0, 0] > -9.0 else y
        total = tf.reduce_sum(y)
    return tape.gradient(total, x), total


@tf.function
def gradient_of_calls(x: Any) -> Any:
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(nested(x) ** 2)
        first = tape.gradient(y, x)
    return first, outer.gradient(first, x), outer.gradient(y, x)


@tf.function
def many_kinds(x: Any) -> Any:
    with tf.device("/device:CPU:0"):
        q, r = tf.linalg.qr(x)
    values, places = tf.math.top_k(x, 2)
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0]]).to_tensor()
    image = tf.image.resize(tf.reshape(x, [1, 4, 3, 1]), [8, 8])
    text = tf.strings.to_number(tf.strings.as_string(tf.cast(x * 100.0, tf.int32)))
    narrow = tf.cast(tf.cast(x, tf.bfloat16) * 3.0, tf.float32)
    fft = tf.abs(tf.signal.fft(tf.cast(x, tf.complex64)))
    return q, r, values, places, ragged, image, text, narrow, fft, tf.split(x, 3, axis=1)[1]


EXACT = [
    nested, loop, loop_that_breaks, loop_in_a_loop, branches, mapped, arrays_of_tensors,
    gradient_of_a_loop, gradient_of_calls, many_kinds,
]  # fmt: skip


@pytest.mark.parametrize("function", EXACT, ids=lambda f: f.__name__)
def test_a_graph_run_op_by_op_gives_the_same_values(function: Any) -> None:
    x = tf.constant(np.random.default_rng(3).normal(size=(4, 3)).astype("float32"))
    found, expected = arrays(interpreted(function, x)), called(function, x)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        # Grappler rewrites what a call runs (a power of 2 becomes a square): the last bit may go.
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


def test_a_function_that_xla_compiles_is_entered_uncompiled() -> None:
    @tf.function(jit_compile=True)
    def compiled(x: Any) -> Any:
        return tf.tanh(x) * tf.exp(-x)

    @tf.function
    def function(x: Any) -> Any:
        return compiled(x) + 1.0

    x = tf.constant([0.1, 0.7, -2.0])
    types: list[str] = []
    found = interpreted(function, x, on_op=lambda op, i, o: types.append(op.type))
    assert {"Tanh", "Exp"} <= set(types)
    # XLA has its own approximations of tanh and exp.
    np.testing.assert_allclose(found[0], called(function, x)[0], rtol=1e-5)


def test_variables_are_written_as_by_a_call() -> None:
    by_call, by_hand = tf.Variable(tf.zeros([3])), tf.Variable(tf.zeros([3]))

    def update(variable: Any) -> Callable[[Any], Any]:
        @tf.function
        def function(x: Any) -> Any:
            for _ in tf.range(3):
                variable.assign_add(x)
            variable.scatter_nd_update([[0]], [7.0])
            return variable + 0.0

        return function

    x = tf.constant([1.0, 2.0, 3.0])
    expected = update(by_call)(x)
    (found,) = interpreted(update(by_hand), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(by_hand, by_call)


def test_the_listener_hears_each_op_with_its_values() -> None:
    heard: list[tuple[str, list[float], list[float]]] = []

    @tf.function
    def function(x: Any) -> Any:
        return tf.sqrt(x) - 1.0

    def on_op(op: Any, inputs: list[Any], outputs: list[Any]) -> None:
        heard.append((op.type, [float(t) for t in inputs], [float(t) for t in outputs]))

    interpreted(function, tf.constant(4.0), on_op=on_op)
    assert heard == [("Sqrt", [4.0], [2.0]), ("Sub", [2.0, 1.0], [1.0]), ("Identity", [1.0], [1.0])]


def test_ops_that_the_runtime_would_prune_do_not_run() -> None:
    types: list[str] = []

    @tf.function
    def function(x: Any) -> Any:
        tf.math.log(x)
        return x + 1.0

    interpreted(function, tf.constant(-1.0), on_op=lambda op, i, o: types.append(op.type))
    assert "Log" not in types


def test_given_outputs_stand_in_for_an_op() -> None:
    @tf.function
    def function(x: Any) -> Any:
        return tf.random.uniform([2]) + x

    concrete = function.get_concrete_function(tf.TensorSpec([], tf.float32))
    (random,) = [op for op in concrete.graph.get_operations() if op.type == "RandomUniform"]
    given = {random: [tf.constant([0.25, 0.5])]}
    (found,) = Interpreter(None, given).run(concrete.graph, [tf.constant(1.0)])
    np.testing.assert_array_equal(found, [1.25, 1.5])


def test_ops_that_are_left_out_have_no_effect() -> None:
    counter = tf.Variable(0)

    @tf.function
    def function(x: Any) -> Any:
        counter.assign_add(1)
        return x

    concrete = function.get_concrete_function(tf.constant(1.0))
    skip = frozenset(("AssignAddVariableOp",))
    args = [tf.constant(1.0), *concrete.captured_inputs]
    Interpreter(skip=skip).run(concrete.graph, args)
    assert int(counter) == 0


def test_intermediate_tensors_are_let_go() -> None:
    @tf.function
    def function(x: Any) -> Any:
        for _ in range(30):
            x = x * 1.5
        return x

    import weakref

    alive: list[Any] = []
    most = 0

    def on_op(op: Any, inputs: list[Any], outputs: list[Any]) -> None:
        nonlocal most
        alive.extend(weakref.ref(tensor) for tensor in outputs)
        most = max(most, sum(reference() is not None for reference in alive))

    interpreted(function, tf.constant(1.0), on_op=on_op)
    assert most <= 4


def test_an_error_names_the_op_of_the_graph() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def function(x: Any) -> Any:
        return tf.reshape(x, [7], name="misfit")

    concrete = function.get_concrete_function()
    with pytest.raises(tf.errors.InvalidArgumentError, match="graph op misfit"):
        interpreter.run(concrete.graph, [tf.ones([6])])


def test_loops_of_tensorflow_1_are_refused() -> None:
    def of_tensorflow_1(x: Any) -> Any:
        return tf.compat.v1.while_loop(lambda v: v < 10.0, lambda v: v * 2.0, [x])

    tf.compat.v1.disable_control_flow_v2()
    try:
        graph = tf.Graph()
        with graph.as_default():
            x = tf.compat.v1.placeholder(tf.float32, [])
            of_tensorflow_1(x)
    finally:
        tf.compat.v1.enable_control_flow_v2()
    wrapped = tf.compat.v1.wrap_function(lambda x: x, [tf.TensorSpec([], tf.float32)])
    with wrapped.graph.as_default():
        tf.graph_util.import_graph_def(graph.as_graph_def(), name="old")
    wrapped.graph.outputs = [wrapped.graph.get_operation_by_name("old/while/Exit").outputs[0]]
    with pytest.raises(NotInterpretable, match="TF1"):
        plans.plan_of(wrapped.graph)


def test_a_loaded_model_is_interpreted(tmp_path: Any) -> None:
    class Model(tf.Module):
        def __init__(self) -> None:
            self.w = tf.Variable([[1.0, -2.0], [0.5, 3.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
        def __call__(self, x: Any) -> Any:
            for _ in tf.range(3):
                x = tf.nn.relu(x @ self.w)
            return x

    tf.saved_model.save(Model(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    x = tf.constant([[0.3, 0.9]])
    concrete = loaded.__call__.concrete_functions[0]
    (found,) = interpreter.run(concrete.graph, [x, *concrete.captured_inputs])
    np.testing.assert_allclose(found, loaded(x), rtol=1e-6)
