"""The analyses across ranks, on runs that are written so that every answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracelens.analysis.ranks import RankReport, analyse
from tracelens.analysis.ranks.stored import align_run
from tracelens.analysis.ranks.waits import bus_factor
from tracelens.engines import open_engine
from tracelens.storage.bulk import BulkShard, Coded
from tracelens.storage.reader import open_trace

PITCH_NS = 10_000_000


class Run:
    """A run whose collectives are given by when each rank was ready, on one true clock."""

    def __init__(self, path: Path, ranks: int, *, hosts: Sequence[str] | None = None) -> None:
        self.path, self.ranks = path, ranks
        self.hosts = hosts or [f"node{rank}" for rank in range(ranks)]

    def write(
        self,
        late_ns: Any,
        *,
        transfer_ns: int = 100_000,
        skew_ns: Sequence[int] | None = None,
        drift: Sequence[float] | None = None,
        name: Any = "allreduce",
        steps: int = 12,
        attempt: int = 0,
        **columns: Any,
    ) -> Run:
        """Write one collective a step; ``late_ns`` has shape (steps, ranks)."""
        late = np.broadcast_to(np.asarray(late_ns), (steps, self.ranks))
        at = np.arange(steps)
        ready = at[:, None] * PITCH_NS + late
        gone = ready.max(axis=1) + transfer_ns
        for rank in range(self.ranks):
            ahead = (skew_ns or [0] * self.ranks)[rank]
            rate = (drift or [0.0] * self.ranks)[rank]
            entered, left = ready[:, rank], gone
            own = [(t + ahead + np.round(t * rate)).astype(np.int64) for t in (entered, left)]
            with BulkShard(
                self.path, rank, attempt=attempt, world_size=self.ranks, host=self.hosts[rank]
            ) as shard:
                shard.write("collectives", {
                    "coll_id": at, "step": at, "seq": at, "comm_group": "0",
                    "size_bytes": 1_000_000,
                    "name": name[rank] if isinstance(name, list) else name, "tid": 1,
                    "start_ns": own[0], "duration_ns": own[1] - own[0], **columns,
                })  # fmt: skip
                for step in range(steps):
                    shard.event(
                        "step", step=step, start_ns=step * PITCH_NS, duration_ns=PITCH_NS - 10,
                        n_ops=0, hits=0, scalars={},
                    )  # fmt: skip
        return self

    def report(self) -> RankReport:
        """Analyse it."""
        with open_engine(self.path) as engine:
            return analyse(engine)


def rules(report: RankReport) -> list[str]:
    return [finding["rule"] for finding in report.findings]


def test_waits_are_what_the_last_rank_makes_the_others_wait(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 3).write([0, 1_000_000, 3_000_000])
    waits = {wait.rank: wait for wait in run.report().waits}
    # Twelve steps, the first of which is left out.
    assert [waits[rank].waited_ns for rank in range(3)] == [33_000_000, 22_000_000, 0]
    assert [waits[rank].last for rank in range(3)] == [0, 0, 11]
    # With the last but one it would have come 2 ms sooner each time.
    assert [waits[rank].caused_ns for rank in range(3)] == [0, 0, 22_000_000]
    assert waits[2].own_ns == PITCH_NS - 10 and waits[0].own_ns == PITCH_NS - 10 - 3_000_000


def test_a_rank_that_is_always_late_is_a_straggler_and_turns_are_none(tmp_path: Path) -> None:
    late = Run(tmp_path / "late", 3).write([0, 0, 500_000]).report()
    assert [f["rank"] for f in late.findings if f["rule"] == "straggler"] == [2]
    turns = np.zeros((12, 3))
    turns[np.arange(12), np.arange(12) % 3] = 500_000
    assert "straggler" not in rules(Run(tmp_path / "turns", 3).write(turns).report())


def test_what_a_late_rank_spends_more_time_in_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 3).write([0, 0, 500_000])
    for rank in range(3):
        with BulkShard(run.path, rank, attempt=1, world_size=3) as shard:
            shard.write("samples", {
                "t_ns": [0, 1], "thread": "main", "count": 1, "step": 0,
                "duration_ns": [1_000_000, 6_000_000 if rank == 2 else 1_000_000],
                "stack": Coded([0, 1], ["main (a.py:1)\nforward (a.py:7)",
                                        "main (a.py:1)\nload (data.py:3)"]),
            })  # fmt: skip
    report = run.report()
    assert [(e.what, e.name, e.more_ns) for e in report.excess] == [
        ("sample", "load (data.py:3)", 5_000_000)
    ]
    (late,) = [f for f in report.findings if f["rule"] == "straggler"]
    assert "load (data.py:3) (5.00 ms more)" in late["advice"]


def test_a_rank_that_costs_next_to_nothing_is_not_told_of(tmp_path: Path) -> None:
    assert "straggler" not in rules(Run(tmp_path / "run", 2).write([0, 2_000]).report())


def test_waits_need_no_clocks_and_clocks_are_found_from_waits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    late = rng.integers(0, 300_000, (60, 3))
    skew = [0, 5_000_000, -70_000_000_000]
    run = Run(tmp_path / "run", 3).write(late, skew_ns=skew, steps=60)
    report = run.report()
    straight = Run(tmp_path / "straight", 3).write(late, steps=60).report()
    assert report.waits == straight.waits
    for clock, ahead in zip(report.clocks, skew, strict=True):
        assert clock.low_ns is not None and clock.high_ns is not None
        assert clock.low_ns <= -ahead <= clock.high_ns
        assert abs(clock.offset_ns + ahead) <= (clock.error_ns or 0)
        assert clock.drift_ppb is None
    assert "clock_offset" in rules(report) and "clock_offset" not in rules(straight)


def test_a_drift_between_two_clocks_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 2).write(0, steps=4000, drift=[0.0, 50e-6])
    (_, clock) = run.report().clocks
    assert clock.drift_ppb == pytest.approx(-50_000, rel=0.01)


def test_ranks_of_one_machine_share_a_clock_unless_that_cannot_be(tmp_path: Path) -> None:
    same = Run(tmp_path / "same", 2, hosts=["a", "a"]).write(0, skew_ns=[0, 20_000])
    assert [(c.source, c.offset_ns) for c in same.report().clocks] == [("host", 0)] * 2
    apart = Run(tmp_path / "apart", 2, hosts=["a", "a"]).write(0, skew_ns=[0, 9_000_000])
    assert apart.report().clocks[1].source == "collectives"


def test_offsets_are_written_into_the_trace_and_used_by_its_views(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 2).write(0, skew_ns=[0, 4_000_000])
    assert align_run(run.path) == 1
    assert align_run(run.path) == 0
    with open_trace(run.path) as reader:
        assert abs(reader.clock_offset_ns(1) + 4_000_000) <= 100_000
        rows = reader.sql("SELECT shard, clock_offset_ns FROM shards ORDER BY shard")
    assert rows == [("r00000-0", 0), ("r00001-0", -4_000_000)]
    assert run.report().clocks[1].offset_ns == -4_000_000


def test_bandwidth_is_of_the_transfer_not_of_the_waiting(tmp_path: Path) -> None:
    (transfer,) = Run(tmp_path / "run", 4).write([0, 0, 0, 900_000]).report().transfers
    assert (transfer.ranks, transfer.median_ns) == (4, 100_000)
    assert transfer.algorithm_gbs == pytest.approx(10.0)
    assert transfer.bus_gbs == pytest.approx(15.0)
    (gathered,) = Run(tmp_path / "all", 4).write(0, name="allgather").report().transfers
    # Four parts of a megabyte, of which three come over the bus.
    assert gathered.algorithm_gbs == pytest.approx(40.0)
    assert gathered.bus_gbs == pytest.approx(30.0)
    assert [bus_factor(n, 4) for n in ("allgather", "broadcast")] == [0.75, 1.0]
    assert bus_factor("allreduce", 1) == 1.0


def test_ranks_that_call_different_collectives_are_told(tmp_path: Path) -> None:
    report = Run(tmp_path / "run", 2).write(0, name=["allreduce", "broadcast"]).report()
    (finding,) = [f for f in report.findings if f["rule"] == "mismatched_collective"]
    assert finding["severity"] == "error" and finding["number"] == 0
    assert "allreduce on one rank and broadcast on another" in finding["message"]


def test_collectives_that_need_not_wait_are_not_compared(tmp_path: Path) -> None:
    report = Run(tmp_path / "run", 2).write([0, 3_000_000], name="broadcast").report()
    assert report.source == "collectives" and report.waits == ()


def test_attempts_are_compared_each_for_itself(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 2).write([0, 1_000_000]).write([0, 1_000_000], attempt=1)
    report = run.report()
    assert report.attempts == 1 and "restarted" in rules(report)
    assert [wait.calls for wait in report.waits] == [22, 22]


def test_kernels_of_a_profile_are_paired_by_step_and_order(tmp_path: Path) -> None:
    for rank, late in enumerate((0, 700_000)):
        with BulkShard(tmp_path / "run", rank, world_size=2) as shard:
            start = np.array([0, 2_000_000, 9_000_000]) + late
            shard.write("kernels", {
                "kern_id": range(3), "step": [0, 0, 1], "kind": "comm", "device": 0, "stream": 7,
                "name": Coded([0, 1, 0], ["ncclDevKernel_AllReduce_Sum_f32_RING_LL",
                                          "ncclDevKernel_AllGather_RING_LL"]),
                "start_ns": start, "duration_ns": 800_000 - late,
            })  # fmt: skip
    report = Run(tmp_path / "run", 2).report()
    assert report.source == "kernels"
    assert [(w.calls, w.last, w.waited_ns) for w in report.waits] == [
        (3, 0, 2_100_000),
        (3, 3, 0),
    ]
    assert sorted(t.name for t in report.transfers) == ["allgather", "allreduce"]


def bad_ops(path: Path, rank: int, step: int, start_ns: int, *, flags: int = 0) -> None:
    with BulkShard(path, rank, world_size=2, host=f"node{rank}") as shard:
        shard.write("ops", {
            "op_id": range(3), "step": [0, step, step], "ord": [0, 0, 1], "name": "aten::log",
            "start_ns": [0, start_ns, start_ns + 5], "duration_ns": 5, "flags": [0, flags, 0],
            "nan_count": [0, 2, 2], "inf_count": 0, "numel": 4, "file": "train.py", "line": 7,
        })  # fmt: skip


def test_the_first_rank_to_go_non_finite_is_found_by_step_then_by_time(tmp_path: Path) -> None:
    bad_ops(tmp_path / "steps", 0, 5, 10)
    bad_ops(tmp_path / "steps", 1, 4, 9_000)
    first = Run(tmp_path / "steps", 2).report()
    assert [(bad.rank, bad.step, bad.source) for bad in first.nonfinite] == [
        (1, 4, "train.py:7"),
        (0, 5, "train.py:7"),
    ]
    (finding,) = [f for f in first.findings if f["rule"] == "first_nonfinite_rank"]
    # No finding of severity error blames the op: the program may well have meant it.
    assert (finding["rank"], finding["severity"], finding["exact"]) == (1, "info", True)
    bad_ops(tmp_path / "times", 0, 5, 9_000)
    bad_ops(tmp_path / "times", 1, 5, 8_000)
    assert Run(tmp_path / "times", 2).report().nonfinite[0].rank == 1


def test_memory_that_nobody_has_written_yet_is_not_the_first_non_finite(tmp_path: Path) -> None:
    bad_ops(tmp_path / "run", 0, 5, 10, flags=16)
    assert Run(tmp_path / "run", 1).report().nonfinite[0].t_ns == 15


def test_parameters_that_differ_are_told_with_the_ranks_in_the_minority(tmp_path: Path) -> None:
    for rank in range(3):
        with BulkShard(tmp_path / "run", rank, world_size=3) as shard:
            step = np.repeat([0, 10, 20], 2)
            odd = (rank == 2) & (step >= 10) & (np.tile([0, 1], 3) == 1)
            shard.write("fingerprints", {
                "step": step, "name": Coded(np.tile([0, 1], 3), ["a.weight", "b.weight"]),
                "kind": "parameter", "numel": 4, "checksum": step + odd, "l2": 1.0,
            })  # fmt: skip
    report = Run(tmp_path / "run", 3).report()
    assert report.divergence is not None
    assert [(d.rank, d.first, d.names) for d in report.divergence.by_rank] == [(2, 10, 1)]
    assert report.divergence.first[0][:4] == (10, "parameter", "b.weight", 2)
    (finding,) = [f for f in report.findings if f["rule"] == "diverged_rank"]
    assert finding["ranks"] == [2] and finding["step"] == 10


def test_a_run_of_one_process_has_nothing_to_compare(tmp_path: Path) -> None:
    with BulkShard(tmp_path / "run"):
        pass
    report = Run(tmp_path / "run", 1).report()
    assert (report.ranks, report.missing, report.waits, report.findings) == ((0,), (), (), ())
