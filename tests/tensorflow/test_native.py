"""The compiled ops: built once, checked in one pass, leaving the program's graph as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context

from tracelens import nativebuild
from tracelens_tensorflow import native

pytestmark = pytest.mark.skipif(nativebuild.compiler() is None, reason="no C++ compiler here")

FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


@pytest.fixture
def checks() -> native.Checks:
    checks = native.checks()
    checks.take()
    return checks


def optimized_ops(function: Any, *args: Any) -> list[str]:
    """Return the types of ops that the runtime ran after its own optimizations."""
    context.enable_run_metadata()
    try:
        function(*args)
        metadata: config_pb2.RunMetadata = context.export_run_metadata()
    finally:
        context.disable_run_metadata()
    return [node.op for graph in metadata.partition_graphs for node in graph.node]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_check_trips_for_each_dtype_and_for_nothing_finite(
    dtype: str, checks: native.Checks
) -> None:
    good = tf.cast(tf.fill([37], 3.0), dtype)
    native.check_op([good], [5])
    assert checks.take() == []
    bad = tf.concat([good, tf.cast([float("inf")], dtype)], 0)
    native.check_op([good, bad], [5, 6])
    assert checks.pending
    assert checks.take() == [6]
    assert not checks.pending


def test_a_check_inside_a_function_is_not_pruned_and_changes_no_result(
    checks: native.Checks,
) -> None:
    def compute(x: Any, look: bool) -> Any:
        y = tf.math.log(x)
        if look:
            native.check_op([y], [11])
        return tf.reduce_sum(tf.nn.relu(y))

    plain = tf.function(lambda x: compute(x, False))
    looked_at = tf.function(lambda x: compute(x, True))
    x = tf.random.uniform([64], 0.5, 2.0, seed=3)
    assert looked_at(x).numpy().tobytes() == plain(x).numpy().tobytes()
    assert checks.take() == []
    looked_at(x - 2.0)
    assert checks.take() == [11]


def test_a_check_of_a_constant_runs_each_time_and_not_when_the_graph_is_optimized(
    checks: native.Checks,
) -> None:
    @tf.function
    def compute(x: Any) -> Any:
        native.check_op([tf.constant([1.0, 2.0]) * 2.0], [3])
        return x

    before = checks.checked
    for _ in range(3):
        compute(tf.constant(1.0))
    assert checks.checked == before + 3


def test_a_check_of_a_layers_output_leaves_the_fused_product_fused(checks: native.Checks) -> None:
    weights, bias = tf.random.normal([32, 32], seed=1), tf.random.normal([32], seed=2)

    @tf.function
    def plain(x: Any) -> Any:
        return tf.nn.bias_add(tf.matmul(x, weights), bias)

    @tf.function
    def looked_at(x: Any) -> Any:
        y = tf.nn.bias_add(tf.matmul(x, weights), bias)
        native.check_op([y], [1])
        return y

    x = tf.random.normal([4, 32], seed=3)
    fused = [op for op in optimized_ops(plain, x) if "Fused" in op]
    assert fused and [op for op in optimized_ops(looked_at, x) if "Fused" in op] == fused
    np.testing.assert_array_equal(plain(x), looked_at(x))


def test_checks_can_be_switched_off(checks: native.Checks) -> None:
    checks.enable(False)
    try:
        native.check_op([tf.constant([float("nan")])], [1])
        assert not checks.pending
    finally:
        checks.enable(True)


def test_without_a_compiler_the_reason_is_one_line(tmp_path: Path) -> None:
    code = "from tracelens_tensorflow import native; print(native.available(), native.why_not())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CXX": "/nonexistent", "TRACELENS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == (
        "False no C++ compiler found; install g++ or clang++, or set CXX"
    ), done.stderr


def test_a_graph_that_xla_compiles_is_not_usable() -> None:
    seen: list[bool] = []

    @tf.function(jit_compile=True)
    def compiled(x: Any) -> Any:
        return x + 1.0

    @tf.function
    def plain(x: Any) -> Any:
        seen.append(native.usable(tf.compat.v1.get_default_graph()))
        return x

    plain(tf.constant(1.0))
    assert seen == [True]
