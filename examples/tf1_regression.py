"""Fit a line with a TF1 session, as programs of 2016 do, watched without a change.

    tracelens run -o tf1.tltrace examples/tf1_regression.py
    tracelens run -o tf1.tltrace examples/tf1_regression.py --bug ; tracelens why tf1.tltrace

The bug is a learning rate that is too high: the weights grow until their square overflows.
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow.compat.v1 as tf

STEPS = 200


def main() -> None:
    """Fit y = 3x - 1 and print the weights found."""
    rate = 3.0 if "--bug" in sys.argv else 0.1
    rng = np.random.default_rng(0)
    xs = rng.uniform(-1, 1, (256, 1)).astype(np.float32)
    ys = 3 * xs - 1 + rng.normal(0, 0.05, xs.shape).astype(np.float32)
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [None, 1], name="x")
        y = tf.placeholder(tf.float32, [None, 1], name="y")
        weight = tf.get_variable("weight", [1, 1], initializer=tf.zeros_initializer())
        bias = tf.get_variable("bias", [1], initializer=tf.zeros_initializer())
        error = tf.matmul(x, weight) + bias - y
        loss = tf.reduce_mean(tf.square(error))
        train = tf.train.GradientDescentOptimizer(rate).minimize(loss)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for step in range(STEPS):
                _, value = session.run([train, loss], {x: xs, y: ys})
                if step % 50 == 0:
                    print(f"step {step}  loss {value:.4g}", flush=True)
            slope, offset = session.run([weight, bias])
    print(f"y = {slope[0, 0]:.2f}x {offset[0]:+.2f}")


if __name__ == "__main__":
    main()
