"""`MirroredStrategy` on two virtual CPUs: replicas are checked, and their lines named."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from guarded import code_of, errors, guard, notes, steps


@pytest.fixture(scope="module")
def strategy() -> tf.distribute.MirroredStrategy:
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((64, 4), dtype=np.float32)
    return x, x.sum(axis=1, keepdims=True)


def test_a_nan_in_one_replica_of_a_custom_loop_names_its_line(
    tmp_path: Path, strategy: tf.distribute.MirroredStrategy
) -> None:
    with strategy.scope():
        weight = tf.Variable(tf.ones([4, 1]), name="weight")
    x, y = data()
    x[12] = 0.0  # in the second half of the first batch: the second replica's
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)

    @tf.function
    def train_step(batch):
        def replica(batch):
            x, _ = batch
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.math.log(tf.matmul(x, weight)))  # here
            gradient = tape.gradient(loss, weight)
            context = tf.distribute.get_replica_context()
            weight.assign_sub(0.01 * context.all_reduce("SUM", gradient))
            return loss

        return strategy.reduce("MEAN", strategy.run(replica, args=(batch,)), axis=None)

    with guard(tmp_path) as session:
        for batch in strategy.experimental_distribute_dataset(batches):
            train_step(batch)
    first = errors(session)[0]
    assert code_of(first).endswith("# here")
    assert first["step"] == 0
    assert notes(session, "hook_failed") == []


def test_a_distributed_fit_is_checked_and_counted(
    tmp_path: Path, strategy: tf.distribute.MirroredStrategy
) -> None:
    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=False)
    x, y = data()
    with guard(tmp_path / "clean") as session:
        model.fit(x, y, batch_size=16, verbose=0)
    assert session.findings == []
    assert len([step for step in steps(session) if step["scalars"]]) == 4
    x[40] = np.nan
    with guard(tmp_path / "bad") as session:
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert errors(session)[0]["step"] == 2
    assert notes(session, "hook_failed") == []
