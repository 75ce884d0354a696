"""Every backward op names its forward op and the user's line, wherever gradients are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import pytest
import tensorflow as tf

from tracelens.events import Phase
from tracelens_tensorflow import facts, fdef

X = tf.TensorSpec([2, 3])


@pytest.fixture(autouse=True, scope="module")
def watched() -> Iterator[None]:
    """Watch what sessions watch, without paying for a session in each test."""
    uninstall = facts.install(None)
    yield
    uninstall()


def all_ops(graph: Any, seen: set[int] | None = None) -> Iterator[tf.Operation]:
    """Yield the ops of a graph and of the functions that they call."""
    seen = set() if seen is None else seen
    if id(graph) in seen:
        return
    seen.add(id(graph))
    for op in graph.get_operations():
        yield op
        for names in fdef.called_by(op).values():
            for name in names:
                place = graph
                while place is not None:
                    function = place._get_function(name)
                    if function is not None:
                        yield from all_ops(function.graph, seen)
                        break
                    place = getattr(place, "outer_graph", None)


def grad(function: Callable[[Any], Any]) -> Any:
    """Return the graph of a function's gradient, made on a tape."""

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(function(x))
        return tape.gradient(y, x)

    return step.get_concrete_function(X).graph


def check(graph: Any, function: Callable[..., Any], *links: tuple[str, str, str]) -> None:
    """Check that each backward op of a type has a forward op of a type at a marked line."""
    lines, first = inspect.getsourcelines(function)
    markers = {
        line.partition("# ")[2].strip(): first + at for at, line in enumerate(lines) if "# " in line
    }
    for backward, forward, marker in links:
        found = [op for op in all_ops(graph) if op.type == backward and is_backward(op)]
        assert found, f"no backward {backward}: {sorted({op.type for op in all_ops(graph)})}"
        for op in found:
            told = facts.facts_of(op)
            assert told.forward is not None, op.name
            assert (told.forward.type, told.source.line) == (forward, markers[marker]), op.name
            assert told.source.file == __file__
            assert told.exact


def is_backward(op: tf.Operation) -> bool:
    return facts.facts_of(op).phase is Phase.BACKWARD


SQRT = ("SqrtGrad", "Sqrt", "sqrt")
TANH = ("TanhGrad", "Tanh", "tanh")


def test_ops_of_a_tape() -> None:
    def f(x: Any) -> Any:
        y = tf.sqrt(x)  # sqrt
        return tf.tanh(y)  # tanh

    check(grad(f), f, SQRT, TANH)


def test_two_ops_of_one_type_are_told_apart() -> None:
    def f(x: Any) -> Any:
        y = tf.tanh(x)  # one
        z = tf.tanh(y)  # two
        return tf.tanh(z)  # three

    graph = grad(f)
    linked = {}
    for op in all_ops(graph):
        if op.type == "TanhGrad":
            forward = facts.facts_of(op).forward
            assert op.inputs[0] is forward.outputs[0]
            linked[op.name] = forward.name
    assert len(set(linked.values())) == 3


def test_the_sum_of_two_gradients_belongs_to_the_op_that_receives_it() -> None:
    def f(x: Any) -> Any:
        y = tf.sqrt(x)  # sqrt
        return tf.sin(y) + tf.tanh(y)  # tanh

    check(grad(f), f, SQRT, TANH, ("AddN", "Sqrt", "sqrt"))


def test_the_seed_belongs_to_the_loss() -> None:
    @tf.function
    def f(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.tanh(x)  # tanh
        return tape.gradient(y, x)

    graph = f.get_concrete_function(X).graph
    check(graph, f.python_function, TANH, ("Fill", "Tanh", "tanh")) if any(
        op.type == "Fill" for op in graph.get_operations()
    ) else check(graph, f.python_function, TANH, ("Const", "Tanh", "tanh"))


def test_ops_in_a_while_body() -> None:
    def f(x: Any) -> Any:
        for _ in tf.range(3):
            x = tf.sqrt(x)  # sqrt
            x = tf.tanh(x)  # tanh
        return x

    check(grad(f), f, SQRT, TANH)


def test_ops_in_a_loop_in_a_loop() -> None:
    def f(x: Any) -> Any:
        for _ in tf.range(3):
            x = tf.sqrt(x)  # sqrt
            for _ in tf.range(2):
                x = tf.tanh(x)  # tanh
        return x

    check(grad(f), f, SQRT, TANH)


def test_ops_in_branches() -> None:
    def f(x: Any) -> Any:
        if tf.reduce_sum(x) > 0:
            x = tf.sqrt(x)  # sqrt
        else:
            x = tf.tanh(x)  # tanh
        return x

    check(grad(f), f, SQRT, TANH)


def test_ops_in_a_branch_in_a_loop() -> None:
    def f(x: Any) -> Any:
        for i in tf.range(3):
            if i > 1:
                x = tf.sqrt(x)  # sqrt
            else:
                x = tf.tanh(x)  # tanh
        return x

    check(grad(f), f, SQRT, TANH)


def test_ops_in_a_loop_in_a_branch() -> None:
    def f(x: Any) -> Any:
        if tf.reduce_sum(x) > 0:
            for _ in tf.range(3):
                x = tf.sqrt(x)  # sqrt
        return tf.tanh(x)  # tanh

    check(grad(f), f, SQRT, TANH)


def test_ops_in_a_case() -> None:
    def f(x: Any) -> Any:
        def first() -> Any:
            return tf.sqrt(x)  # sqrt

        def second() -> Any:
            return tf.tanh(x)  # tanh

        return tf.switch_case(tf.cast(tf.reduce_sum(x), tf.int32), [first, second])

    check(grad(f), f, SQRT, TANH)


def test_ops_of_a_called_function() -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return tf.sqrt(x)  # sqrt

    check(grad(inner), inner.python_function, SQRT)


def test_ops_of_a_function_called_in_a_called_function() -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return tf.sqrt(x)  # sqrt

    @tf.function
    def middle(x: Any) -> Any:
        return inner(x)

    check(grad(middle), inner.python_function, SQRT)


def test_ops_of_a_function_that_is_called_twice() -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return tf.sqrt(x)  # sqrt

    graph = grad(lambda x: inner(inner(x)))
    check(graph, inner.python_function, SQRT)
    calls = {
        facts.facts_of(op).forward.name
        for op in graph.get_operations()
        if op.type.endswith("PartitionedCall") and is_backward(op)
    }
    assert len(calls) == 2


def test_ops_of_a_function_called_in_a_loop() -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return tf.sqrt(x)  # sqrt

    def f(x: Any) -> Any:
        for _ in tf.range(2):
            x = inner(x)
        return x

    check(grad(f), inner.python_function, SQRT)


def test_a_tape_outside_of_the_function() -> None:
    @tf.function
    def f(x: Any) -> Any:
        for _ in tf.range(2):
            x = tf.sqrt(x)  # sqrt
        return tf.tanh(x)  # tanh

    x = tf.ones([2, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = f(x)
    tape.gradient(y, x)
    concrete = f.get_concrete_function(X)
    graphs = [made._backward.graph for made in concrete._first_order_tape_functions.values()]
    for graph in graphs:
        check(graph, f.python_function, SQRT, TANH)
    assert graphs


def test_map_fn_and_scan() -> None:
    def f(x: Any) -> Any:
        y = tf.map_fn(lambda row: tf.sqrt(row), x)  # sqrt
        return tf.scan(lambda a, row: tf.tanh(a + row), y)  # tanh

    check(grad(f), f, SQRT, TANH)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_jacobian(vectorized: bool) -> None:
    @tf.function
    def f(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.sqrt(x)  # sqrt
            y = tf.tanh(y)  # tanh
        return tape.jacobian(y, x, experimental_use_pfor=vectorized)

    check(f.get_concrete_function(X).graph, f.python_function, SQRT, TANH)


def test_a_custom_gradient_names_its_own_line() -> None:
    @tf.custom_gradient
    def clipped(x: Any) -> Any:
        def backward(upstream: Any) -> Any:
            return upstream * tf.math.log1p(x)  # own

        return tf.identity(x), backward

    def f(x: Any) -> Any:
        return tf.sqrt(clipped(x))  # sqrt

    graph = grad(f)
    check(graph, f, SQRT)
    own = [op for op in all_ops(graph) if op.type == "Log1p"]
    assert [facts.facts_of(op).source.code.partition("#")[2].strip() for op in own] == ["own"]
    assert all(is_backward(op) and facts.facts_of(op).exact for op in own)


def test_recompute_grad() -> None:
    def f(x: Any) -> Any:
        y = tf.sqrt(x)  # sqrt
        return tf.tanh(y)  # tanh

    check(grad(tf.recompute_grad(f)), f, SQRT, TANH)


def test_the_gradient_of_a_gradient() -> None:
    def f(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.exp(tf.tanh(x))  # tanh
        return tape.gradient(y, x)

    graph = grad(f)
    inner = [op for op in all_ops(graph) if op.type == "TanhGrad"]
    lines = {facts.facts_of(op).source.code.partition("#")[2].strip() for op in inner}
    assert len(inner) > 1
    assert lines == {"tanh"}


def test_a_persistent_tape() -> None:
    @tf.function
    def f(x: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = tf.sqrt(x)  # sqrt
            for _ in tf.range(2):
                y = tf.tanh(y)  # tanh
        return tape.gradient(y, x), tape.gradient(y, x)

    check(f.get_concrete_function(X).graph, f.python_function, SQRT, TANH)


def test_symbolic_gradients_in_a_function() -> None:
    @tf.function
    def f(x: Any) -> Any:
        y = tf.sqrt(x)  # sqrt
        for _ in tf.range(2):
            y = tf.tanh(y)  # tanh
        return tf.gradients(y, x)

    check(f.get_concrete_function(X).graph, f.python_function, SQRT, TANH)


def test_symbolic_gradients_in_a_session_graph() -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [2, 3])
        y = tf.sqrt(x)  # sqrt
        y = tf.cond(tf.reduce_sum(y) > 0, lambda: tf.tanh(y), lambda: y)  # tanh
        tf.compat.v1.gradients(y, x)

    with tf.Graph().as_default() as graph:
        build()
    check(graph, build, SQRT, TANH)


def test_a_session_graph_that_was_built_before_is_read_by_its_names() -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [2, 3])
        y = tf.sqrt(x, name="net/root")  # sqrt
        tf.compat.v1.gradients(tf.tanh(y), x)  # tanh

    from tracelens_tensorflow import gradlinks, spans

    with tf.Graph().as_default() as graph:
        build()
    spans._notes.pop(graph, None)
    assert gradlinks.forward_of(graph.get_operation_by_name("net/root")) is None
    check(graph, build, SQRT, TANH)


def test_loops_of_the_first_kind_in_a_session_graph() -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [2, 3])
        y = tf.compat.v1.while_loop(
            lambda i, y: i < 3,
            lambda i, y: (i + 1, tf.sqrt(y)),  # sqrt
            [0, x],
        )[1]
        tf.compat.v1.gradients(tf.tanh(y), x)  # tanh

    with tf.Graph().as_default() as graph:
        from tensorflow.python.ops import control_flow_util

        enabled = control_flow_util.ENABLE_CONTROL_FLOW_V2
        control_flow_util.ENABLE_CONTROL_FLOW_V2 = False
        try:
            build()
        finally:
            control_flow_util.ENABLE_CONTROL_FLOW_V2 = enabled
    check(graph, build, SQRT, TANH)


def test_a_gathered_row_has_a_sparse_gradient() -> None:
    def f(x: Any) -> Any:
        row = tf.gather(x, [0, 1])  # gather
        return tf.tanh(row)  # tanh

    check(grad(f), f, TANH)


def test_layers_and_their_modules() -> None:
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation="tanh", name="first"),
            keras.layers.Dense(2, activation="sigmoid", name="second"),
        ]
    )

    def f(x: Any) -> Any:
        return model(x)  # call

    graph = grad(f)
    check(graph, f, ("TanhGrad", "Tanh", "call"), ("SigmoidGrad", "Sigmoid", "call"))
    modules = {
        op.type: facts.facts_of(op).module
        for op in all_ops(graph)
        if op.type in ("TanhGrad", "SigmoidGrad")
    }
    assert modules == {"TanhGrad": "first", "SigmoidGrad": "second"}


def test_a_recurrent_layer() -> None:
    model = keras.Sequential(
        [keras.Input((3, 1)), keras.layers.SimpleRNN(2, unroll=False, name="rnn")]
    )

    def f(x: Any) -> Any:
        return model(x[..., None])  # call

    graph = grad(f)
    check(graph, f, ("TanhGrad", "Tanh", "call"))
    told = [facts.facts_of(op) for op in all_ops(graph) if op.type == "TanhGrad"]
    assert {each.module.partition("/")[0] for each in told} == {"rnn"}


def test_a_training_step_links_every_float_op_of_its_backward_pass() -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(2, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            out = model(x, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=out)
            )
        return tape.gradient(loss, model.trainable_variables)

    graph = step.get_concrete_function(
        tf.TensorSpec([4, 8, 8, 1]), tf.TensorSpec([4], tf.int32)
    ).graph
    backward = [op for op in all_ops(graph) if is_backward(op)]
    assert len(backward) > 20
    for op in backward:
        told = facts.facts_of(op)
        assert told.forward is not None, op.name
        assert told.source.file == __file__, op.name


def test_uninstalling_restores_tensorflow() -> None:
    from tensorflow.python.eager import execute, record
    from tensorflow.python.framework import func_graph
    from tensorflow.python.ops import gradients_util

    places = [
        (execute, "record_gradient"),
        (record, "record_operation"),
        (gradients_util, "_MaybeCompile"),
        (gradients_util, "_AggregatedGrads"),
        (func_graph.FuncGraph, "__init__"),
        (keras.layers.Layer, "__call__"),
    ]
    before = [getattr(*place) for place in places]
    facts.install(None)()
    assert [getattr(*place) for place in places] == before
