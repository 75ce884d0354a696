"""What each op of a graph is: the user's line, the layer, the phase."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tracelens as tl
from tracelens.events import Phase
from tracelens_tensorflow import facts, fdef, layers
from tracelens_tensorflow.plans import graph_of_function

X = tf.TensorSpec([2, 3])


@pytest.fixture(autouse=True, scope="module")
def watched() -> Iterator[None]:
    """Watch what sessions watch, without paying for a session in each test."""
    uninstall = facts.install(None)
    yield
    uninstall()


def all_ops(graph: Any) -> Iterator[tf.Operation]:
    """Yield the ops of a graph and of the functions that they call."""
    for op in graph.get_operations():
        yield op
        for names in fdef.called_by(op).values():
            for name in names:
                yield from all_ops(graph_of_function(graph, name))


def told(graph: Any, op_type: str) -> facts.OpFacts:
    """Return the facts of the first op of a type."""
    return facts.facts_of(next(op for op in all_ops(graph) if op.type == op_type))


def marker(known: facts.OpFacts) -> str:
    """Return the comment at the line of an op, which tests say what the line is by."""
    assert known.source is not None
    assert known.source.file == __file__
    return known.source.code.rpartition("# ")[2]


def graph_of(function: Any, *specs: Any) -> Any:
    return tf.function(function).get_concrete_function(*(specs or (X,))).graph


# Lines


def test_a_line_of_a_function_that_autograph_converted() -> None:
    def f(x: Any) -> Any:
        if tf.reduce_sum(x) > 0:
            x = x + 1
            for _ in tf.range(3):
                x = tf.sqrt(x)  # in the loop
        return tf.tanh(x)  # at the end

    graph = graph_of(f)
    assert marker(told(graph, "Sqrt")) == "in the loop"
    assert marker(told(graph, "Tanh")) == "at the end"
    assert told(graph, "Sqrt").exact
    assert told(graph, "Tanh").source.function == "f"


def test_lines_of_lambdas_decorated_nested_and_generator_code() -> None:
    def twice(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(function)
        def wrapper(x: Any) -> Any:
            return function(function(x))  # wrapper

        return wrapper

    @twice
    def decorated(x: Any) -> Any:
        return tf.sqrt(x)  # decorated

    def f(x: Any) -> Any:
        inner = lambda y: tf.tanh(y)  # noqa: E731  # lambda

        def nested(y: Any) -> Any:
            return tf.sigmoid(y)  # nested

        parts = [tf.exp(part) for part in tf.unstack(nested(inner(decorated(x))))]  # comprehension
        return tf.stack(parts)

    graph = graph_of(f)
    lines = {kind: marker(told(graph, kind)) for kind in ("Sqrt", "Tanh", "Sigmoid", "Exp")}
    assert lines == {
        "Sqrt": "decorated",
        "Tanh": "lambda",
        "Sigmoid": "nested",
        "Exp": "comprehension",
    }


def test_a_line_within_a_statement_of_several_lines() -> None:
    def f(x: Any) -> Any:
        y = tf.where(  # where
            x > 0,  # greater
            tf.tanh(x),  # tanh
            tf.sigmoid(  # sigmoid
                tf.sqrt(x)  # sqrt
                / tf.exp(x)  # exp
            ),
        )
        return (
            y  # add
            + (x - 1.0)  # sub
            * tf.cos(x)
        )

    graph = graph_of(f)
    kinds = ("Greater", "Tanh", "Sigmoid", "Sqrt", "Exp", "RealDiv", "SelectV2", "AddV2", "Sub")
    lines = {kind: marker(told(graph, kind)) for kind in kinds}
    assert lines == {
        "SelectV2": "where",
        "Greater": "greater",
        "Tanh": "tanh",
        "Sigmoid": "sigmoid",
        "Sqrt": "sqrt",
        "Exp": "exp",
        "RealDiv": "sqrt",
        "AddV2": "add",
        "Sub": "sub",
    }
    assert all(told(graph, kind).exact for kind in kinds)


def test_a_line_is_a_guess_where_a_statement_makes_the_op_on_several() -> None:
    def f(x: Any) -> Any:
        return tf.concat(
            [
                tf.sqrt(x),  # first
                tf.sqrt(x + 1),  # second
            ],
            0,
        )

    known = told(graph_of(f), "Sqrt")
    assert (marker(known), known.exact) == ("first", False)


def test_a_line_of_a_function_that_autograph_leaves_alone() -> None:
    @tf.autograph.experimental.do_not_convert
    def f(x: Any) -> Any:
        return tf.sqrt(x)  # as written

    assert marker(told(graph_of(f), "Sqrt")) == "as written"


def test_a_line_in_a_called_function_and_in_what_map_fn_calls() -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return tf.sqrt(x)  # callee

    def f(x: Any) -> Any:
        return tf.map_fn(lambda row: tf.tanh(row), inner(x))  # mapped

    graph = graph_of(f)
    assert marker(told(graph, "Sqrt")) == "callee"
    assert marker(told(graph, "Tanh")) == "mapped"


def test_a_line_of_a_session_graph() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [2])
        tf.sqrt(x)  # session graph
    assert marker(told(graph, "Sqrt")) == "session graph"
    assert told(graph, "Sqrt").phase is Phase.FORWARD


def test_ops_of_a_loaded_model_have_only_a_nearest_line(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: tf.sqrt(x), input_signature=[X])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))  # load
    known = told(graph_of(lambda x: loaded.f(x)), "Sqrt")  # nearest
    assert not known.exact
    assert marker(known) == "nearest"
    assert known.phase is Phase.FORWARD


def test_facts_of_anything_never_raise() -> None:
    known = facts.facts_of(object())  # type: ignore[arg-type]
    assert (known.source, known.exact, known.module) == (None, False, "")
    assert (known.phase, known.forward) == (Phase.OTHER, None)


# Layers


class Block(keras.layers.Layer):
    """A layer of a user, with one of Keras inside."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.inner = keras.layers.Dense(3, activation="tanh", name="inner")

    def call(self, x: Any) -> Any:
        return tf.sqrt(self.inner(x))  # block


def test_an_op_of_a_users_layer_has_the_line_of_its_call() -> None:
    model = keras.Sequential([keras.Input((3,)), Block(name="block")])
    graph = graph_of(lambda x: model(x))
    assert marker(told(graph, "Sqrt")) == "block"
    assert told(graph, "Sqrt").module == "block"
    assert marker(told(graph, "Tanh")) == "block"
    assert told(graph, "Tanh").module == "block/inner"


def test_an_op_of_a_keras_layer_has_the_line_of_the_models_call() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu", name="head")])

    def f(x: Any) -> Any:
        return model(x)  # call

    known = told(graph_of(f), "Relu")
    assert (marker(known), known.module) == ("call", "head")


def test_paths_follow_the_nesting_of_models_that_share_names() -> None:
    def encoder(name: str) -> keras.Model:
        parts = [keras.Input((3,)), keras.layers.Dense(3, "tanh", name="dense")]
        return keras.Sequential(parts, name=name)

    inputs = keras.Input((3,))
    model = keras.Model(inputs, encoder("right")(encoder("left")(inputs)), name="pair")
    graph = graph_of(lambda x: model(x))
    paths = [facts.facts_of(op).module for op in all_ops(graph) if op.type == "Tanh"]
    assert paths == ["pair/left/dense", "pair/right/dense"]


def test_ops_of_a_plain_module_belong_to_its_name_scope() -> None:
    class Linear(tf.Module):
        def __init__(self, name: str) -> None:
            super().__init__(name=name)
            with self.name_scope:
                self.weight = tf.Variable(tf.ones([3, 3]))

        @tf.Module.with_name_scope
        def __call__(self, x: Any) -> Any:
            return tf.matmul(x, self.weight)

    class Net(tf.Module):
        def __init__(self) -> None:
            super().__init__(name="net")
            with self.name_scope:
                self.first, self.last = Linear("first"), Linear("last")

        @tf.Module.with_name_scope
        def __call__(self, x: Any) -> Any:
            return tf.tanh(self.last(self.first(x)))

    net = Net()
    graph = graph_of(lambda x: tf.sqrt(net(x)))
    modules = [facts.facts_of(op).module for op in all_ops(graph) if op.type == "MatMul"]
    assert modules == ["net/first", "net/last"]
    assert (told(graph, "Tanh").module, told(graph, "Sqrt").module) == ("net", "")


def test_ops_of_a_loop_in_a_layer_belong_to_the_layer() -> None:
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.GRU(2, name="memory")])
    graph = graph_of(lambda x: model(x), tf.TensorSpec([4, 3, 2]))
    inside = [op for op in all_ops(graph) if op.type == "Sigmoid"]
    assert inside
    assert {facts.facts_of(op).module.partition("/")[0] for op in inside} == {"memory"}


def test_the_current_path_can_be_read_in_eager_code() -> None:
    seen: list[str] = []

    class Spy(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            seen.append(layers.current_path())
            return x

    model = keras.Sequential([keras.Input((3,)), Spy(name="spy")], name="outer")
    seen.clear()
    model(tf.ones([1, 3]))
    with pytest.raises(ValueError, match="incompatible"):
        model(tf.ones([1, 4, 5, 6]))
    assert seen[0] == "outer/spy"
    assert layers.current_path() == ""


def test_watching_layers_leaves_their_signature_and_source() -> None:
    call = keras.layers.Layer.__call__
    assert list(inspect.signature(call).parameters) == ["self", "args", "kwargs"]
    assert (call.__name__, call.__module__) == ("__call__", "keras.src.layers.layer")
    assert "def __call__" in inspect.getsource(call)


def test_watching_layers_does_not_make_autograph_convert_them() -> None:
    class Branching(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x + 1 if tf.reduce_sum(x) > 0 else x

    layer = Branching()
    for function in (lambda x: layer(x), layer, layer.__call__):
        with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
            graph_of(function)


def test_a_layer_whose_call_fails_raises_its_own_error() -> None:
    class Failing(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Failing()(tf.ones([1]))
    assert layers.current_path() == ""


def test_layers_that_are_imported_later_are_watched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tf_keras" / "src" / "engine"
    package.mkdir(parents=True)
    for directory in (package, package.parent, package.parent.parent):
        (directory / "__init__.py").touch()
    text = "class Layer:\n    name = 'old'\n    def __call__(self, x):\n        return look()\n"
    (package / "base_layer.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("tf_keras.src.engine.base_layer")
    monkeypatch.setattr(module, "look", layers.current_path, raising=False)
    assert module.Layer()(1) == "old"


# Phases


def trained(optimizer: Any) -> Any:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "tanh")])

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))  # noqa: B905  # apply
        return loss

    return graph_of(step)


def test_phases_of_a_training_step() -> None:
    graph = trained(keras.optimizers.Adam())
    phases = {kind: told(graph, kind).phase for kind in ("Tanh", "TanhGrad", "AssignSubVariableOp")}
    assert phases == {
        "Tanh": Phase.FORWARD,
        "TanhGrad": Phase.BACKWARD,
        "AssignSubVariableOp": Phase.OPTIMIZER,
    }


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW", "Lion", "Adafactor"])
def test_optimizer_ops_have_the_line_that_applied_the_gradients(name: str) -> None:
    graph = trained(getattr(keras.optimizers, name)(1e-3))
    updates = [op for op in all_ops(graph) if op.type.startswith("Assign")]
    assert updates
    for op in updates:
        known = facts.facts_of(op)
        assert (known.phase, marker(known)) == (Phase.OPTIMIZER, "apply")


def test_an_update_by_hand_is_an_optimizers_and_a_moving_average_is_not() -> None:
    weight, average = tf.Variable(tf.ones([3])), tf.Variable(tf.ones([3]))

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            y = tf.tanh(x * weight)
            average.assign(0.9 * average + 0.1 * y[0])  # average
        weight.assign_sub(0.1 * tf.clip_by_value(tape.gradient(y, weight), -1.0, 1.0))  # update
        return y

    graph = graph_of(step)
    update, moving = told(graph, "AssignSubVariableOp"), told(graph, "AssignVariableOp")
    assert (update.phase, marker(update)) == (Phase.OPTIMIZER, "update")
    assert (moving.phase, marker(moving)) == (Phase.FORWARD, "average")


def test_a_forward_accumulator_is_no_backward_pass() -> None:
    def f(x: Any) -> Any:
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = tf.tanh(x)  # forward mode
        return accumulator.jvp(y)

    known = told(graph_of(f), "TanhGrad")
    assert (known.phase, marker(known)) == (Phase.FORWARD, "forward mode")


def test_a_loss_scale_optimizer_is_an_optimizer() -> None:
    graph = trained(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    known = told(graph, "IsFinite")
    assert (known.phase, marker(known)) == (Phase.OPTIMIZER, "apply")


def test_a_session_optimizer_maps_to_minimize() -> None:
    with tf.Graph().as_default() as graph:
        weight = tf.compat.v1.get_variable("w", [2], use_resource=True)
        loss = tf.reduce_sum(tf.tanh(weight))  # loss
        optimizer = tf.compat.v1.train.AdamOptimizer()
        optimizer.minimize(loss)  # minimize
    update = told(graph, "ResourceApplyAdam")
    assert (update.phase, marker(update)) == (Phase.OPTIMIZER, "minimize")
    gradient = told(graph, "TanhGrad")
    assert (gradient.phase, marker(gradient)) == (Phase.BACKWARD, "loss")


def test_functions_of_a_dataset_are_data() -> None:
    def parse(x: Any) -> Any:
        return tf.math.log(x)  # parse

    dataset = tf.data.Dataset.from_tensor_slices(tf.ones([4])).map(parse)
    known = told(dataset._map_func.function.graph, "Log")
    assert (known.phase, marker(known)) == (Phase.DATA, "parse")


def test_a_step_in_a_loop_over_a_dataset_is_no_data() -> None:
    weight = tf.Variable(1.0)

    def epoch(dataset: Any) -> Any:
        total = 0.0
        for x in dataset:
            with tf.GradientTape() as tape:
                y = tf.tanh(x * weight)  # forward
            total += tape.gradient(y, weight)
        return total

    graph = graph_of(epoch, tf.data.DatasetSpec(tf.TensorSpec([])))
    scan = next(op for op in graph.get_operations() if op.type == "ScanDataset")
    body = graph_of_function(graph, scan.get_attr("f").name)
    assert told(body, "Tanh").phase is Phase.FORWARD
    gradient = told(body, "TanhGrad")
    assert (gradient.phase, marker(gradient)) == (Phase.BACKWARD, "forward")


def test_keras_fit_maps_every_phase_to_the_line_of_fit() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "tanh", name="head")])
    model.compile("adam", "mse", metrics=["mae"])
    graphs: list[Any] = []
    from tensorflow.python.eager.polymorphic_function import transform

    transform.FUNC_GRAPH_TRANSFORMS.append(graphs.append)
    try:
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)  # fit
    finally:
        transform.FUNC_GRAPH_TRANSFORMS.remove(graphs.append)
    ops = {op.type: facts.facts_of(op) for graph in graphs for op in graph.get_operations()}
    for kind, phase in (
        ("Tanh", Phase.FORWARD),
        ("TanhGrad", Phase.BACKWARD),
        ("AssignSubVariableOp", Phase.OPTIMIZER),
    ):
        assert (ops[kind].phase, marker(ops[kind])) == (phase, "fit")
    assert ops["TanhGrad"].module == "head"


def test_replicas_that_keras_traces_on_threads_have_the_line_of_fit() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "tanh", name="head")])
        model.compile("sgd", "mse")
    graphs: list[Any] = []
    from tensorflow.python.eager.polymorphic_function import transform

    transform.FUNC_GRAPH_TRANSFORMS.append(graphs.append)
    try:
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)  # fit replicas
    finally:
        transform.FUNC_GRAPH_TRANSFORMS.remove(graphs.append)
    ops = {op.type: facts.facts_of(op) for graph in graphs for op in graph.get_operations()}
    for kind in ("Tanh", "TanhGrad", "AssignSubVariableOp"):
        assert (marker(ops[kind]), ops[kind].exact) == ("fit replicas", True)
    assert (ops["Tanh"].module, ops["TanhGrad"].module) == ("head", "head")


# Sites


def test_a_site_holds_what_is_known_of_an_op_and_is_interned_once(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), Block(name="block")])
    graph = graph_of(lambda x: model(x))
    op = next(op for op in all_ops(graph) if op.type == "Sqrt")
    with tl.trace(tmp_path / "t.tltrace", quiet=True) as session:
        site = facts.site_of(op, session.writer)
        assert facts.site_of(op, session.writer) == site
        value = session.writer.strings(site)
    assert (value["op"], value["module"], value["function"]) == ("Sqrt", "block", "call")
    assert value["code"].endswith("# block")
    assert "exact" not in value


def test_facts_keep_no_graph_alive() -> None:
    import gc
    import weakref

    def f(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.tanh(x)
        return tape.gradient(y, x)

    function = tf.function(f)
    graph = weakref.ref(function.get_concrete_function(X).graph)
    for op in graph().get_operations():
        facts.facts_of(op)
    del op, function
    gc.collect()
    assert graph() is None
