"""A program under tfdbg v2: ``python tfdbg_program.py ROOT``; makes a dump in each mode."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

MODES = ("NO_TENSOR", "CURT_HEALTH", "CONCISE_HEALTH", "FULL_HEALTH", "SHAPE", "FULL_TENSOR")


def train(steps: int = 3) -> None:
    weights = tf.Variable(np.full((4, 3), 0.1, np.float32), name="weights")

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            hidden = tf.nn.relu(x @ weights)
            loss = tf.reduce_mean(tf.sqrt(hidden))  # the gradient is infinite at 0
        gradient = tape.gradient(loss, weights)
        weights.assign_sub(0.1 * gradient)
        return loss

    batch = np.arange(20, dtype=np.float32).reshape(5, 4)
    for number in range(steps):
        step(tf.constant(batch if number < steps - 1 else batch - 10))


def loop() -> None:
    @tf.function
    def shrink(x: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(4):
            x = tf.math.log(x)  # NaN from the third time round
        return x * 2.0

    shrink(tf.constant(5.0))


def eager() -> None:
    x = tf.constant([1.0, -1.0])
    tf.sqrt(x)  # NaN, read by nothing


def dump(root: str, mode: str, buffer: int = -1) -> None:
    writer = tf.debugging.experimental.enable_dump_debug_info(
        root, tensor_debug_mode=mode, circular_buffer_size=buffer
    )
    program = {"loop": loop, "eager": eager}.get(Path(root).name, train)
    if buffer > 0:
        train(30)
    else:
        program()
    writer.FlushNonExecutionFiles()
    writer.FlushExecutionFiles()
    tf.debugging.experimental.disable_dump_debug_info()


if __name__ == "__main__":
    for each in MODES:
        dump(f"{sys.argv[1]}/{each}", each)
    dump(f"{sys.argv[1]}/loop", "FULL_HEALTH")
    dump(f"{sys.argv[1]}/eager", "FULL_HEALTH")
    dump(f"{sys.argv[1]}/circular", "CONCISE_HEALTH", buffer=40)
