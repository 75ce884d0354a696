"""Ops that went to another device than they asked for, on a machine with two virtual CPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import tracelens as tl
from tracelens_tensorflow.placement import differs, short

PROGRAM = """
import sys
import tensorflow as tf
import tracelens as tl

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
weight = tf.Variable([[1.0, 2.0], [3.0, 4.0]])


@tf.function
def f(x):
    with tf.device("/GPU:0"):
        y = tf.matmul(x, weight)  # matmul
        y = tf.matmul(y, weight)
    with tf.device("/CPU:1"):
        z = tf.sqrt(y)
        weight.assign_add(weight)  # assign
    for _ in tf.range(2):
        with tf.device("/GPU:7"):
            z = tf.sigmoid(z)  # loop
    return z


@tf.function
def as_asked(x):
    with tf.device("/CPU:1"):
        return tf.tanh(x)


with tl.trace(sys.argv[1], quiet=True):
    with tf.device("/CPU:1"):
        tf.sqrt(1.0)
    for _ in range(2):
        with tf.device("/GPU:9"):  # block
            tf.sqrt(1.0)
        f(tf.ones([3, 2]))
        as_asked(tf.ones([3, 2]))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("placement")
    script, trace = directory / "program.py", directory / "t.tltrace"
    script.write_text(PROGRAM)
    subprocess.run([sys.executable, str(script), str(trace)], check=True, timeout=120)
    return list(tl.load(trace).findings)


def test_each_pair_of_devices_is_one_finding_at_the_users_line(found: list[dict[str, Any]]) -> None:
    told = {(each["requested"], each["device"]): each for each in found}
    assert {each["rule"] for each in found} == {"placement"}
    assert len(told) == len(found)
    codes = {pair: each["source"]["code"].rpartition("# ")[2] for pair, each in told.items()}
    assert codes == {
        ("GPU:0", "CPU:0"): "matmul",
        ("CPU:1", "CPU:0"): "assign",
        ("GPU:7", "CPU:0"): "loop",
        ("GPU:9", "CPU:0"): "block",
    }
    assert told["GPU:0", "CPU:0"]["n_ops"] == 2


def test_the_reason_is_told(found: list[dict[str, Any]]) -> None:
    messages = {each["requested"]: each["message"] for each in found}
    assert "there is no such device here (there are CPU:0, CPU:1)" in messages["GPU:0"]
    assert "with a variable" in messages["CPU:1"]
    assert messages["GPU:9"].startswith("a tf.device block at ")
    assert "asks for GPU:9, its ops run on CPU:0" in messages["GPU:9"]


def test_the_findings_are_warnings_and_json(found: list[dict[str, Any]]) -> None:
    assert {each["severity"] for each in found} == {"warning"}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("asked", "went", "told"),
    [
        ("/device:GPU:0", "/job:localhost/replica:0/task:0/device:CPU:0", True),
        ("/device:CPU:1", "/job:localhost/replica:0/task:0/device:CPU:0", True),
        ("/device:CPU:*", "/job:localhost/replica:0/task:0/device:CPU:3", False),
        ("/job:worker/task:1", "/job:localhost/replica:0/task:0/device:CPU:0", True),
        ("", "/job:localhost/replica:0/task:0/device:CPU:0", False),
    ],
)
def test_what_was_left_open_does_not_differ(asked: str, went: str, told: bool) -> None:
    assert differs(asked, went) is told


def test_devices_are_named_as_the_user_writes_them() -> None:
    assert short("/job:localhost/replica:0/task:0/device:CPU:0") == "CPU:0"
    assert short("/device:GPU:1") == "GPU:1"
    assert short("/job:worker/task:2/device:GPU:1") == "/job:worker/task:2/GPU:1"
