"""What one session learned of a function does not mislead the next one."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

import tracelens as tl


def test_a_second_session_names_the_cause_in_a_function_the_first_has_seen(tmp_path: Path) -> None:
    weight = tf.Variable(2.0)

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.math.log(weight * x)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    for number in range(3):
        weight.assign(2.0)
        with tl.trace(tmp_path / f"{number}.tltrace", quiet=True) as session:
            step(tf.constant(1.0))
            step(tf.constant(0.0))
        first = session.findings[0]["first_cause"]
        assert first["op"] == "Log", (number, session.findings[0])
        assert first["inputs"][0]["min"] == 0.0
