"""One process that uses PyTorch and TensorFlow gives one trace with both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import torch

import tracelens as tl
from tracelens.storage.reader import open_trace


class Program:
    """A step of each framework, which can be made to go bad."""

    def __init__(self) -> None:
        self.weight = tf.Variable([0.5, 0.5])
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        weight = self.weight

        @tf.function
        def tensorflow_step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.math.log(x) * weight)  # tensorflow
            weight.assign_sub(0.1 * tape.gradient(loss, weight))
            return loss

        self.tensorflow_step = tensorflow_step

    def torch_step(self, x: Any) -> None:
        loss = torch.log(self.model(x) * 0.0 + x.sum()).sum()  # torch
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def lines(findings: Any) -> list[str]:
    sources = [(f["first_cause"] or {}).get("source") or {} for f in findings]
    return list(dict.fromkeys(s.get("code", "").rpartition("# ")[2] for s in sources))


@pytest.mark.parametrize("capture", ("guard", "ops"))
@pytest.mark.parametrize("first", ("torch", "tensorflow"))
def test_failures_of_both_are_named_in_one_trace(tmp_path: Path, first: str, capture: str) -> None:
    program = Program()
    path = tmp_path / "both.tltrace"
    with tl.trace(str(path), capture=capture, quiet=True) as session:
        for number in range(4):
            torch_input = torch.zeros(1, 2) if number == 2 else torch.ones(1, 2)
            tensorflow_input = tf.constant([0.0 if number == 3 else 1.0, 2.0])
            if first == "torch":
                program.torch_step(torch_input)
                program.tensorflow_step(tensorflow_input)
            else:
                program.tensorflow_step(tensorflow_input)
                program.torch_step(torch_input)
            session.step()
    found = [f for f in session.findings if f["severity"] == "error" and f["step"] in (2, 3)]
    assert {f["step"] for f in found} == {2, 3}
    assert "torch" in lines(f for f in found if f["step"] == 2)
    assert "tensorflow" in lines(f for f in found if f["step"] == 3)
    reader = open_trace(path)
    assert len(list(reader.events("step"))) == 4
    failed = [note for note in reader.events("note") if note["kind"] == "hook_failed"]
    assert failed == []
    (shard,) = reader.shards()
    assert sorted(shard.framework.split(", ")) == ["tensorflow", "torch"]
    assert reader.health().ok


def test_no_two_ops_have_one_id(tmp_path: Path) -> None:
    program = Program()
    path = tmp_path / "both.tltrace"
    with tl.trace(str(path), capture="ops", quiet=True):
        for _ in range(3):
            program.torch_step(torch.ones(1, 2))
            program.tensorflow_step(tf.constant([1.0, 2.0]))
            tf.sqrt(tf.constant([1.0, 4.0]))
    ops = list(open_trace(path).ops())
    ids = [op.op_id for op in ops]
    names = {op.name for op in ops}
    assert len(ids) == len(set(ids))
    assert {"Log", "Sqrt", "aten::log"} <= names


KERAS = """
import os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
import json, numpy as np, keras
class Logarithm(keras.layers.Layer):
    def call(self, x):
        return keras.ops.log(keras.ops.relu(x))  # here
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8),
                          Logarithm(name="logarithm"), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.random.default_rng(0).random((32, 4), dtype=np.float32)
model.fit(x, x.sum(1, keepdims=True), batch_size=8, verbose=0)
"""


def test_keras_on_torch_is_recorded_with_its_layer_names(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(KERAS)
    path = tmp_path / "run.tltrace"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    subprocess.run(
        [sys.executable, "-m", "tracelens", "run", "-o", str(path), str(script), "torch"],
        check=False, env=environment, capture_output=True, timeout=300,
    )  # fmt: skip
    why = subprocess.run(
        [sys.executable, "-m", "tracelens", "why", "--json", str(path)],
        check=False, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    report = json.loads(why.stdout)
    cause = report["first_cause"]
    assert cause["source"]["code"].endswith("# here")
    assert "logarithm" in cause["module"]
