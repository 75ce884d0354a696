"""The C ring writer against the record's definition."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from tracelens.events import Phase, RecordKind
from tracelens.storage.format import RECORD

native = pytest.importorskip("tracelens.stats._native", reason="the extension is not built")


class Ring:
    """A ring's memory, as a shard writer lays it out."""

    def __init__(self, capacity: int, **options: object) -> None:
        self.records = np.zeros(capacity, RECORD)
        self.counters = np.zeros(2, np.uint64)
        self.emitter = native.Emitter(
            self.records.ctypes.data,
            capacity,
            self.counters.ctypes.data,
            self.counters.ctypes.data + 8,
            **options,
        )


def test_a_record_written_in_c_has_every_field_where_python_reads_it() -> None:
    ring = Ring(8, first_op_id=40, epoch_monotonic_ns=time.monotonic_ns())
    op_id = ring.emitter.op(7, 3, Phase.BACKWARD, 66, 12, 1000, 11, 22, 33, 44)
    record = ring.records[0]
    assert op_id == record["op_id"] == 40
    expected = {
        "kind": RecordKind.OP, "phase": Phase.BACKWARD, "flags": 66, "site_id": 7, "layout_id": 0,
        "step": 3, "parent_id": -1, "fwd_op_id": 12, "duration_ns": 1000, "n_in": 4, "n_out": 1,
        "stat_level": 0, "nan": 0, "zero": -1, "value_id": 40 * 16, "seq": 1,
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert record["in_ids"].tolist() == [11, 22, 33, 44]
    assert record["tid"] == threading.get_native_id()
    assert -1000 <= record["start_ns"] < 10**10


def test_positions_go_round_the_ring_and_op_ids_go_on() -> None:
    ring = Ring(4)
    assert [ring.emitter.op(1, 0) for _ in range(6)] == list(range(6))
    assert ring.records["seq"].tolist() == [5, 6, 3, 4]
    assert ring.counters[0] == 6
    assert ring.emitter.reserve() == 6
    assert ring.emitter.reserve_op_id() == 6


def test_a_full_stream_ring_drops_and_counts_and_takes_up_again() -> None:
    ring = Ring(128, stream=True)
    for _ in range(200):
        ring.emitter.op(1, 0)
    written = int(ring.counters[0])
    assert written < 128
    assert ring.emitter.dropped == 200 - written
    ring.counters[1] = written
    ring.emitter.op(1, 0)
    assert ring.counters[0] == written + 1


def test_a_blocking_ring_waits_for_a_sealer_that_needs_the_interpreter() -> None:
    ring = Ring(128, stream=True, block=True)

    def seal() -> None:
        while sealing.is_set():
            ring.counters[1] = ring.counters[0]
            time.sleep(0.001)

    sealing = threading.Event()
    sealing.set()
    thread = threading.Thread(target=seal)
    thread.start()
    for _ in range(1000):
        ring.emitter.op(1, 0)
    sealing.clear()
    thread.join()
    assert ring.emitter.dropped == 0
    assert ring.counters[0] == 1000


def test_threads_never_share_a_position_or_an_op_id() -> None:
    ring = Ring(1 << 14)

    def write() -> None:
        for _ in range(2000):
            ring.emitter.op(1, 0)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = ring.records[:8000]
    assert (written["seq"] == np.arange(1, 8001)).all()
    assert sorted(written["op_id"]) == list(range(8000))
    assert len(set(written["tid"])) >= 2


def test_a_closed_emitter_writes_nothing() -> None:
    ring = Ring(4)
    ring.emitter.close()
    ring.emitter.op(1, 0)
    assert not ring.records["seq"].any()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0, 4, 1, 1), ValueError), ((1, 3, 1, 1), ValueError), ((1, 0, 1, 1), ValueError),
     (("x", 4, 1, 1), TypeError), ((1, 4), TypeError)],
)  # fmt: skip
def test_a_ring_that_cannot_be_is_refused(arguments: tuple, error: type[Exception]) -> None:
    with pytest.raises(error):
        native.Emitter(*arguments)


def test_op_refuses_what_is_not_a_number() -> None:
    ring = Ring(4)
    with pytest.raises(TypeError):
        ring.emitter.op(1)
    with pytest.raises(TypeError):
        ring.emitter.op("site", 0)
    assert not ring.records["seq"].any()
