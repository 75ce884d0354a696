"""``nonfinite="break"`` in TensorFlow: the prompt stands at the line that built a graph's op."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from conversation import Conversation

pytestmark = pytest.mark.skipif(find_spec("tensorflow") is None, reason="no TensorFlow here")

PROGRAM = """
import tensorflow as tf
import tracelens as tl

@tf.function
def step(x, weight):
    with tf.GradientTape() as tape:
        tape.watch(weight)
        y = tf.math.log(tf.matmul(x, weight) - 100.0)
        loss = tf.reduce_sum(y)
    return loss, tape.gradient(loss, weight)

def train(session):
    weight = tf.ones((4, 4))
    for number in range(2):
        batch = tf.ones((2, 4))
        loss, gradient = step(batch, weight)
        print("loss", float(loss))
        session.step(loss=loss)
        print("finished", number)

with tl.trace("run.tltrace", nonfinite="break", capture="ops", quiet=True) as session:
    train(session)
"""


def test_a_graph_op_is_shown_at_the_line_that_built_it_with_its_recorded_tensors(
    tmp_path: Path,
) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    talk = Conversation(["train.py"], tmp_path)
    said = talk.reach_prompt()
    assert "Log is nan below 0" in said
    assert "this line built Log; `up` leads to the call that runs now" in said
    assert "train.py(9)step()" in said
    assert "-> y = tf.math.log(tf.matmul(x, weight) - 100.0)" in said
    assert "nan=8" in talk.ask("p outputs[0].stats")
    assert "shape=(2, 4)" in talk.ask("p inputs[0]")
    assert "8 nan of 8" in talk.ask("pt")
    assert "Sub" in talk.ask("li")
    assert "train.py:9" in talk.ask("why")
    # The frame of the running call is one further out, and the program goes on from there.
    assert "-> loss, gradient = step(batch, weight)" in talk.ask("up")
    assert "tf.Tensor" in talk.ask("p batch")
    assert '-> print("loss", float(loss))' in talk.ask("n")
    said, status = talk.leave("c")
    assert "finished 1" in said
    assert status == 0
