"""TF1 graphs: a bad `Session.run` is found and its op named, and nothing else changes."""

from __future__ import annotations

import gc
import inspect
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tracelens as tl
from tracelens.diagnosis import diagnose
from tracelens.storage.reader import open_trace

v1 = tf.compat.v1
HERE = Path(__file__).name
BATCH = np.arange(12, dtype=np.float32).reshape(3, 4) / 10


@pytest.fixture
def graph() -> Iterator[tf.Graph]:
    """Give each test a graph of its own as the default one."""
    with tf.Graph().as_default() as made:
        v1.set_random_seed(1)
        yield made


@contextmanager
def recorded(path: Path, **settings: Any) -> Iterator[Any]:
    """Record what runs within."""
    with tl.trace(path, quiet=True, **settings) as session:
        yield session


def why(path: Path) -> dict[str, Any]:
    """Return what ``tracelens why --json`` tells."""
    with open_trace(path) as reader:
        return diagnose(reader)


def line() -> int:
    """Return the caller's line."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def regression(x: Any, *, resource: bool = True, name: str = "w") -> Any:
    """Return a linear layer's output, (batch, 1)."""
    w = v1.get_variable(
        name, [4, 1], initializer=v1.constant_initializer(0.5), use_resource=resource
    )
    return x @ w


def cause_of(path: Path) -> dict[str, Any]:
    """Return the first cause, in this file."""
    told = why(path)
    assert told["verdict"] == "non-finite", told
    cause = told["first_cause"]
    assert cause is not None and Path(cause["source"]["file"]).name == HERE, told
    return cause


@pytest.mark.parametrize("resource", [True, False])
def test_the_op_that_made_a_nan_in_a_train_step_is_named_with_its_line(
    graph: tf.Graph, tmp_path: Path, resource: bool
) -> None:
    x = v1.placeholder(tf.float32, [None, 4], name="x")
    out = regression(x, resource=resource)
    logged = tf.math.log(out - 0.5)
    at = line() - 1
    loss = tf.reduce_mean(logged, name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss], {x: BATCH + 2})
        session.run([train, loss], {x: BATCH + 2})
        session.run([train, loss], {x: BATCH - 1})
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["phase"], cause["step"]) == ("Log", "forward", 2)
    assert cause["source"]["line"] == at
    assert cause["inputs"][0]["max"] < 0 and cause["outputs"][0]["nan"] == 3
    assert why(tmp_path / "t")["exact"]


def test_a_backward_op_is_named_with_the_line_of_its_forward_op(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4], name="x")
    out = regression(x)
    root = tf.sqrt(out - out)
    at = line() - 1
    loss = tf.reduce_sum(root + out, name="loss")
    train = v1.train.AdamOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(train, {x: BATCH})
    told = why(tmp_path / "t")
    assert told["sink"]["sink"] in ("gradient", "parameter") and told["sink"]["name"] == "w"
    cause = cause_of(tmp_path / "t")
    assert cause["phase"] == "backward" and cause["source"]["line"] == at
    assert cause["forward"]["op"] == "Sqrt"


def test_a_nan_that_is_fed_is_told_as_data_with_the_placeholder_and_the_line_of_the_run(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4], name="pixels")
    loss = tf.reduce_mean(regression(x), name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    bad = BATCH.copy()
    bad[1, 2] = np.nan
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss], {x: BATCH})
        session.run([train, loss], {x: bad})
        at = line() - 1
    cause = cause_of(tmp_path / "t")
    assert (cause["origin"], cause["phase"]) == ("data", "data")
    assert cause["source"]["line"] == at and cause["module"] == "pixels"
    told = why(tmp_path / "t")
    assert told["data"]["loader"] == "feed_dict[pixels:0]" and told["data"]["samples"] == [1]


def test_an_update_that_makes_a_variable_bad_of_finite_gradients_is_named(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4], name="x")
    loss = tf.reduce_mean(regression(x) * 0.0, name="loss")
    optimizer = v1.train.AdamOptimizer(0.1, epsilon=0.0)
    train = optimizer.minimize(loss)
    at = line() - 1
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss], {x: BATCH})
        session.run([train, loss], {x: BATCH})
    cause = cause_of(tmp_path / "t")
    assert cause["op"] == "ResourceApplyAdam" and cause["phase"] == "optimizer"
    assert cause["step"] == 0 and cause["source"]["line"] == at


def test_an_update_that_goes_bad_in_the_last_step_is_found_when_the_session_closes(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4], name="x")
    loss = tf.reduce_mean(regression(x) * 0.0, name="loss")
    train = v1.train.AdamOptimizer(0.1, epsilon=0.0).minimize(loss)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(train, {x: BATCH})
    assert cause_of(tmp_path / "t")["op"] == "ResourceApplyAdam"
    assert why(tmp_path / "t")["sink"]["sink"] == "parameter"


def test_a_bad_initial_value_is_named(graph: tf.Graph, tmp_path: Path) -> None:
    zeros = tf.zeros([4])
    start = zeros / zeros
    at = line() - 1
    v1.get_variable("v", initializer=start)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
    cause = cause_of(tmp_path / "t")
    assert cause["op"] == "RealDiv" and cause["source"]["line"] == at


def test_results_are_bit_for_bit_those_of_the_plain_program(tmp_path: Path) -> None:
    def train() -> list[Any]:
        with tf.Graph().as_default():
            v1.set_random_seed(7)
            x = v1.placeholder(tf.float32, [None, 4])
            hidden = tf.nn.relu(x @ v1.get_variable("a", [4, 16]))
            hidden = tf.nn.dropout(hidden, rate=0.5)
            loss = tf.reduce_mean(tf.square(hidden @ v1.get_variable("b", [16, 1])), name="loss")
            step = v1.train.AdamOptimizer(0.01).minimize(loss)
            with v1.Session() as session:
                session.run(v1.global_variables_initializer())
                losses = [session.run([step, loss], {x: BATCH})[1] for _ in range(20)]
                late = session.run(tf.random.normal([3]))
                return [*losses, *session.run(v1.trainable_variables()), late]

    plain = train()
    with recorded(tmp_path / "t"):
        watched = train()
    assert all(np.array_equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_each_run_of_a_train_op_is_a_step_with_its_loss_and_other_runs_are_none(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(tf.square(regression(x)), name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "t") as recording, v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run([train, loss], {x: BATCH})
            session.run(loss, {x: BATCH})
        assert recording.current_step == 3
    with open_trace(tmp_path / "t") as reader:
        losses = [step["scalars"]["loss"] for step in reader.steps()]
    assert len(losses) == 3 and losses == sorted(losses, reverse=True)


def test_a_monitored_session_on_a_finalized_graph_is_watched(
    graph: tf.Graph, tmp_path: Path
) -> None:
    step = v1.train.get_or_create_global_step()
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(tf.math.log(regression(x)), name="loss")
    at = line() - 1
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss, global_step=step)
    hooks = [v1.train.StopAtStepHook(num_steps=3)]
    with (
        recorded(tmp_path / "t"),
        v1.train.MonitoredTrainingSession(
            checkpoint_dir=str(tmp_path / "c"), hooks=hooks, log_step_count_steps=None
        ) as session,
    ):
        assert graph.finalized
        while not session.should_stop():
            session.run([train, loss], {x: -1 - BATCH})
        assert graph.finalized
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["source"]["line"], cause["step"]) == ("Log", at, 0)


def test_a_nan_in_the_taken_branch_of_a_cond_is_named_there(
    graph: tf.Graph, tmp_path: Path
) -> None:
    switch_v2 = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        x = v1.placeholder(tf.float32, [None, 4])
        flag = v1.placeholder(tf.bool, [])
        out = regression(x)
        lines = []

        def risky() -> Any:
            lines.append(line() + 1)
            return tf.math.log(-out)

        loss = tf.reduce_mean(v1.cond(flag, risky, lambda: out), name="loss")
        train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        with recorded(tmp_path / "t"), v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run([train, loss], {x: 1 + BATCH, flag: False})
            session.run([train, loss], {x: 1 + BATCH, flag: True})
    finally:
        if switch_v2:
            v1.enable_control_flow_v2()
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["source"]["line"], cause["step"]) == ("Log", lines[-1], 1)


def test_a_nan_in_a_tf1_while_loop_is_named_in_its_body(graph: tf.Graph, tmp_path: Path) -> None:
    switch_v2 = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        x = v1.placeholder(tf.float32, [], name="x")
        at = line() + 3
        _, out = v1.while_loop(
            lambda i, _: i < 3,
            lambda i, v: (i + 1, tf.math.log(v)),
            [0, x],
        )
        with recorded(tmp_path / "t"), v1.Session() as session:
            session.run(out, {x: 0.5})
    finally:
        if switch_v2:
            v1.enable_control_flow_v2()
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["source"]["line"]) == ("Log", at)
    assert not why(tmp_path / "t")["exact"]


def test_what_a_queue_or_dataset_handed_over_is_used_again(graph: tf.Graph, tmp_path: Path) -> None:
    rows = np.concatenate([BATCH + 1, -BATCH - 1])
    batches = v1.data.make_one_shot_iterator(tf.data.Dataset.from_tensor_slices(rows).batch(3))
    x = batches.get_next()
    loss = tf.reduce_mean(tf.math.log(regression(x)), name="loss")
    train = v1.train.GradientDescentOptimizer(0.01).minimize(loss)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss])
        session.run([train, loss])
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run([train, loss])
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["step"]) == ("Log", 1)
    assert cause["inputs"][0]["max"] < -2 and why(tmp_path / "t")["exact"]


def test_a_python_function_of_the_program_is_called_once_per_run(
    graph: tf.Graph, tmp_path: Path
) -> None:
    calls = []

    def python(array: Any) -> Any:
        calls.append(1)
        return array * np.float32(np.nan)

    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(v1.py_func(python, [x], tf.float32), name="loss")
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(loss, {x: BATCH})
    assert calls == [1]
    assert cause_of(tmp_path / "t")["op"] == "PyFunc"


def test_nothing_is_applied_twice_when_a_bad_run_is_looked_into(
    graph: tf.Graph, tmp_path: Path
) -> None:
    counter = v1.get_variable("counter", initializer=0, trainable=False)
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(tf.math.log(regression(x)), name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with tf.control_dependencies([counter.assign_add(1)]):
        both = tf.group(train)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run([both, loss], {x: -1 - BATCH})
        assert session.run(counter) == 3


def test_nonfinite_raise_raises_on_the_line_of_the_run(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(tf.math.log(regression(x)), name="loss")
    with (
        pytest.raises(tl.NonFiniteError, match="Log"),
        recorded(tmp_path / "t", nonfinite="raise"),
        v1.Session() as session,
    ):
        session.run(v1.global_variables_initializer())
        session.run(loss, {x: -1 - BATCH})


def test_errors_of_the_program_are_its_own(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    out = regression(x)
    with recorded(tmp_path / "t"):
        session = v1.Session()
        with pytest.raises(tf.errors.FailedPreconditionError):
            session.run(out, {x: BATCH})
        session.run(v1.global_variables_initializer())
        with pytest.raises(tf.errors.InvalidArgumentError):
            session.run(out)
        with pytest.raises(ValueError, match="Cannot feed value of shape"):
            session.run(out, {x: BATCH[0]})
        session.close()
        with pytest.raises(RuntimeError, match="closed Session"):
            session.run(out, {x: BATCH})
    assert why(tmp_path / "t")["verdict"] == "clean"


def test_options_metadata_and_callables_of_the_program_work_as_before(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    out = regression(x)
    bad = tf.math.log(tf.constant(-1.0), name="bad")
    options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        metadata = v1.RunMetadata()
        session.run(out, {x: BATCH}, options=options, run_metadata=metadata)
        assert metadata.step_stats.dev_stats
        assert session.make_callable(out, [x])(BATCH).shape == (3, 1)
        assert np.isnan(session.make_callable(bad)())
        handle = session.partial_run_setup([out], [x])
        assert session.partial_run(handle, out, {x: BATCH}).shape == (3, 1)
    assert cause_of(tmp_path / "t")["op"] == "Log"


def test_no_op_of_ours_is_in_what_the_program_exports(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(regression(x), name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    saver = v1.train.Saver()
    before = {key: len(graph.get_collection(key)) for key in graph.get_all_collection_keys()}
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss], {x: BATCH})
        saver.save(session, str(tmp_path / "model"))
        exported = v1.train.export_meta_graph()
    assert not [n.name for n in exported.graph_def.node if n.name.startswith("tracelens")]
    assert before == {key: len(graph.get_collection(key)) for key in before}
    with tf.Graph().as_default(), v1.Session() as session:
        restored = v1.train.import_meta_graph(str(tmp_path / "model.meta"))
        restored.restore(session, str(tmp_path / "model"))
        assert np.isfinite(session.run("loss:0", {"Placeholder:0": BATCH}))


def test_two_sessions_and_graphs_do_not_mix(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 4], name=f"x_{name}")
            loss = tf.reduce_mean(tf.math.log(regression(x, name=name)), name="loss")
            step = v1.train.GradientDescentOptimizer(0.01).minimize(loss)
            made.append((graph, x, loss, step, v1.global_variables_initializer()))
    with recorded(tmp_path / "t"):
        opened = [v1.Session(graph=graph) for graph, *_ in made]
        for session, (_, _, _, _, start) in zip(opened, made, strict=True):
            session.run(start)
        for sign in (1, -1):
            for session, (_, x, loss, step, _) in zip(opened, made, strict=True):
                name = "two" if sign < 0 else ""
                batch = 1 + BATCH
                session.run([step, loss], {x: -batch if name in x.name and name else batch})
        for session in opened:
            session.close()
    told = why(tmp_path / "t")
    assert told["sink"]["name"] in ("loss", "two") and told["first_cause"]["step"] == 3


def test_a_program_that_masks_its_nans_gives_no_alarm(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    out = regression(x)
    safe = tf.where(out > 0, tf.math.log(out), tf.zeros_like(out))
    count = tf.math.count_nonzero(tf.math.is_finite(safe))
    with recorded(tmp_path / "t"), v1.Session() as session, warnings.catch_warnings():
        session.run(v1.global_variables_initializer())
        session.run([safe, count], {x: BATCH - 0.5})
    assert why(tmp_path / "t")["verdict"] == "clean"


def test_ops_level_keeps_times_devices_and_statistics_of_every_float(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(tf.square(regression(x)), name="loss")
    train = v1.train.AdamOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "t", capture="ops"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run([train, loss], {x: BATCH})
    with open_trace(tmp_path / "t") as reader:
        ops = list(reader.ops(step=1))
        steps = reader.steps()
    by_name = {op.name: op for op in reversed(ops)}
    product = by_name["MatMul"]
    stats = product.outputs[0].stats
    assert stats is not None and stats.vmin == pytest.approx(0.3 - 0.1 * 2 * 0.6, abs=0.5)
    assert product.outputs[0].shape == (3, 1) and product.outputs[0].device == "cpu"
    assert product.duration_ns is not None and product.duration_ns > 0
    wall_ns = steps[1]["duration_ns"]
    assert sum(op.duration_ns or 0 for op in ops) < 64 * wall_ns
    update = by_name["ResourceApplyAdam"]
    assert update.phase.label == "optimizer" and update.outputs[0].stats is not None
    assert update.inputs[-1].value_id >= 0
    backward = [op for op in ops if op.phase.label == "backward" and op.fwd_op_id >= 0]
    assert backward and all(op.source is not None for op in backward)


def test_ops_level_names_the_op_without_running_anything_again(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(tf.math.log(regression(x)), name="loss")
    at = line() - 1
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "t", capture="ops"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss], {x: -1 - BATCH})
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["source"]["line"]) == ("Log", at) and cause["inputs"][0]["max"] < 0
    with open_trace(tmp_path / "t") as reader:
        assert not [note for note in reader.notes() if note["kind"] == "replay"]


def test_tensors_level_keeps_what_is_fed_fetched_and_named(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4], name="x")
    out = tf.identity(regression(x), name="out")
    tf.square(out, name="hidden")
    loss = tf.reduce_mean(graph.get_tensor_by_name("hidden:0"), name="loss")
    settings = {"capture": "tensors", "tensors": ("x", "loss", "hid*")}
    with recorded(tmp_path / "t", **settings), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        value = session.run(loss, {x: BATCH})
    trace = tl.load(tmp_path / "t")
    assert np.array_equal(trace.tensor("x", step=0), BATCH)
    assert trace.tensor("hidden", step=0).shape == (3, 1)
    assert trace.tensor("loss", step=0) == value


def test_a_nan_in_a_while_body_is_named_with_its_own_line(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    out = regression(x)
    lines = []

    def body(i: Any, v: Any) -> Any:
        lines.append(line() + 1)
        return i + 1, tf.math.log(v)

    _, looped = tf.while_loop(lambda i, _: i < 3, body, [0, out])
    loss = tf.reduce_mean(looped, name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss], {x: BATCH + 10})
        session.run([train, loss], {x: BATCH + 0.5})
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["source"]["line"], cause["step"]) == ("Log", lines[0], 1)


def test_a_gradient_within_a_loop_is_named_with_its_forward_line(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    out = regression(x)
    lines = []

    def body(i: Any, v: Any) -> Any:
        lines.append(line() + 1)
        return i + 1, tf.sqrt(v)

    _, looped = tf.while_loop(lambda i, _: i < 2, body, [0, out - out])
    loss = tf.reduce_mean(looped, name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([train, loss], {x: BATCH + 0.5})
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["phase"]) == ("SqrtGrad", "backward")
    assert cause["source"]["line"] == lines[0]


def test_a_nan_in_a_branch_that_reads_a_variable_is_named(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    flag = v1.placeholder(tf.bool, [])
    w = v1.get_variable("w", [4, 1], initializer=v1.constant_initializer(-1.0), use_resource=True)
    lines = []

    def risky() -> Any:
        lines.append(line() + 1)
        return tf.math.log(x @ w)

    out = tf.cond(flag, risky, lambda: x @ w, name="choice")
    with recorded(tmp_path / "t"), v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(out, {x: BATCH + 1, flag: False})
        session.run(out, {x: BATCH + 1, flag: True})
    cause = cause_of(tmp_path / "t")
    assert (cause["op"], cause["source"]["line"]) == ("Log", lines[0])


def test_graphs_that_the_program_drops_are_freed_while_recording(tmp_path: Path) -> None:
    freed = []
    with recorded(tmp_path / "t"):
        for _ in range(3):
            with tf.Graph().as_default() as graph, v1.Session() as session:
                x = v1.placeholder(tf.float32, [None, 4])
                loss = tf.reduce_mean(tf.math.log(regression(x)), name="loss")
                train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
                session.run(v1.global_variables_initializer())
                session.run([train, loss], {x: BATCH + 1})
            freed.append(weakref.ref(graph))
            del graph, session, x, loss, train
        gc.collect()
        assert [reference() for reference in freed] == [None] * 3


def test_a_second_recording_adds_nothing_to_a_graph(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(regression(x), name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    counts = []
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for number in range(3):
            with recorded(tmp_path / f"{number}"):
                session.run([train, loss], {x: BATCH})
            counts.append(len(graph.get_operations()))
    assert counts[0] == counts[1] == counts[2]


def test_large_finite_values_give_no_alarm(graph: tf.Graph, tmp_path: Path) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    out = x * 1.0
    with recorded(tmp_path / "t"), v1.Session() as session:
        for _ in range(5):  # their sum is infinite
            session.run(out, {x: np.full((2, 4), 3e38, np.float32)})
    assert why(tmp_path / "t")["verdict"] == "clean"


def test_a_supervisor_and_an_interactive_session_are_watched(
    graph: tf.Graph, tmp_path: Path
) -> None:
    x = v1.placeholder(tf.float32, [None, 4])
    loss = tf.reduce_mean(tf.math.log(regression(x)), name="loss")
    train = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    with recorded(tmp_path / "s"):
        supervisor = v1.train.Supervisor(logdir=None)
        with supervisor.managed_session() as session:
            session.run([train, loss], {x: -1 - BATCH})
    assert cause_of(tmp_path / "s")["op"] == "Log"
    with recorded(tmp_path / "i"):
        session = v1.InteractiveSession(graph=graph)
        session.run([variable.initializer for variable in v1.global_variables()])
        loss.eval({x: -1 - BATCH})
        session.close()
    assert cause_of(tmp_path / "i")["op"] == "Log"
