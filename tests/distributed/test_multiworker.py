"""Two workers of TensorFlow's MultiWorkerMirroredStrategy record to one trace."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tensorflow")
from processes_of import free_port, run_ranks

from tracelens.analysis.ranks import RankReport, analyse
from tracelens.engines import open_engine

PROGRAM = """
    import tensorflow as tf
    import tracelens as tl

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    tf.random.set_seed(1)
    with strategy.scope():
        dense = tf.keras.layers.Dense(1)
        dense.build((None, 4))
        optimizer = tf.keras.optimizers.SGD(0.01)
        optimizer.build(dense.trainable_variables)

    @tf.function
    def train_step(batch):
        def replica(batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.math.log(dense(batch) ** 2 + 1e-3))
            gradients = tape.gradient(loss, dense.trainable_variables)
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce("MEAN", gradients)
            optimizer.apply(gradients, dense.trainable_variables)
            return loss
        return strategy.run(replica, args=(batch,))

    with tl.trace("run.tltrace", profile=True, quiet=True) as session:
        tl.watch(dense, fingerprint_every=1)
        for number in range(5):
            batch = tf.random.stateless_uniform([8, 4], [number, worker])
            if worker == 1 and number == 3:
                batch = batch * float("nan")
            loss = train_step(batch)
            session.step(loss=strategy.reduce("MEAN", loss, axis=None))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RankReport:
    folder = tmp_path_factory.mktemp("workers")
    workers = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    told = {
        rank: {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
            ),
            "RANK": "",
            "WORLD_SIZE": "",
            "MASTER_ADDR": "",
            "MASTER_PORT": "",
        }
        for rank in range(2)
    }
    run_ranks(folder, PROGRAM, 2, extra=told)
    with open_engine(folder / "run.tltrace") as engine:
        return analyse(engine)


def test_workers_take_their_ranks_from_tf_config(report: RankReport) -> None:
    assert (report.ranks, report.world_size, report.missing) == ((0, 1), 2, ())
    assert set(report.states.values()) == {"closed"}


def test_the_worker_whose_batch_was_bad_is_named(report: RankReport) -> None:
    assert (report.nonfinite[0].rank, report.nonfinite[0].step) == (1, 3)


def test_variables_that_the_strategy_keeps_equal_have_equal_fingerprints(
    report: RankReport,
) -> None:
    assert report.divergence is not None
    assert report.divergence.steps >= 5 and report.divergence.ranks == 2
    assert report.divergence.first == ()


def test_collectives_are_read_from_the_profile(report: RankReport) -> None:
    assert report.source == "ops"
    assert {wait.rank for wait in report.waits} == {0, 1}
