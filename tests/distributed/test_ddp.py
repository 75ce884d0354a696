"""Four real processes train with DistributedDataParallel over gloo into one trace."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch.distributed
from processes_of import environment, run_ranks

from tracelens.analysis.ranks import RankReport, analyse
from tracelens.cli import main
from tracelens.engines import open_engine
from tracelens.storage.reader import open_trace

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)

AHEAD_NS = 3_000_000_000

PROGRAM = f"""
    import os, socket, sys, time

    rank = int(os.environ["RANK"])
    if rank == 3:  # another machine, whose clock is ahead
        real = time.time_ns
        time.time_ns = lambda: real() + {AHEAD_NS}
        socket.gethostname = lambda: "elsewhere"

    import torch
    import torch.distributed as dist
    from torch import nn
    import tracelens as tl

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    half = dist.new_group([0, 1])
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    dist.barrier()
    with tl.trace("run.tltrace", capture="ops", quiet=True) as session:
        tl.watch(model, fingerprint_every=2)
        for number in range(12):
            if rank == 2:
                time.sleep(0.15)
            out = model(torch.rand(8, 64)).mean()
            if rank == 1 and number == 10:
                out = torch.log(out - 100.0)  # born here
            optimizer.zero_grad()
            out.backward()
            optimizer.step()
            if rank == 1 and number == 4:
                with torch.no_grad():
                    net[2].weight[0, 0] += 1
            if rank < 2:
                dist.all_reduce(torch.ones(5), group=half)
            session.step(loss=out)
        dist.barrier()
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    run_ranks(folder, PROGRAM, 4)
    return folder / "run.tltrace"


@pytest.fixture(scope="module")
def report(run: Path) -> RankReport:
    with open_engine(run) as engine:
        return analyse(engine)


def test_every_rank_leaves_a_shard_of_one_trace(run: Path, report: RankReport) -> None:
    assert (report.ranks, report.world_size, report.missing) == ((0, 1, 2, 3), 4, ())
    with open_trace(run) as reader:
        assert reader.health().lines() == []


def test_gradient_buckets_are_recorded_with_group_size_and_type(run: Path) -> None:
    with open_trace(run) as reader:
        rows = reader.sql(
            "SELECT rank, count(*), min(comm_ranks), min(dtype), min(size_bytes), "
            "count(DISTINCT seq), min(duration_ns) > 0, min(backend) FROM collectives "
            "WHERE name = 'allreduce' AND comm_group = '0' GROUP BY rank ORDER BY rank"
        )
    whole = (64 * 64 + 64 + 64 + 1) * 4
    assert rows == [(rank, 12, 4, "float32", whole, 12, True, "gloo") for rank in range(4)]


def test_collectives_of_a_smaller_group_are_those_of_its_ranks(run: Path) -> None:
    with open_trace(run) as reader:
        rows = reader.sql(
            "SELECT rank, count(*), min(comm_ranks), min(size_bytes) FROM collectives "
            "WHERE comm_group <> '0' GROUP BY rank ORDER BY rank"
        )
    assert rows == [(0, 12, 2, 20), (1, 12, 2, 20)]


def test_the_rank_that_is_late_is_named(report: RankReport) -> None:
    (late,) = [finding for finding in report.findings if finding["rule"] == "straggler"]
    assert late["rank"] == 2
    waits = {wait.rank: wait for wait in report.waits}
    others = [waits[rank].waited_ns for rank in (0, 1, 3)]
    # Eleven steps after the first, 150 ms each; a busy machine only adds to it.
    assert min(others) > 1_000_000_000 and min(others) > waits[2].waited_ns


def test_a_clock_that_is_ahead_is_aligned(run: Path, report: RankReport) -> None:
    (clock,) = [clock for clock in report.clocks if clock.rank == 3]
    assert clock.source == "collectives" and clock.low_ns is not None and clock.high_ns is not None
    # The two clocks of this one machine differ by exactly what the program added.
    assert clock.low_ns <= -AHEAD_NS <= clock.high_ns
    assert abs(clock.offset_ns + AHEAD_NS) < 20_000_000
    assert [c.source for c in report.clocks if c.rank in (0, 1, 2)] == ["host"] * 3
    with open_trace(run) as reader:
        assert reader.clock_offset_ns(3) == clock.offset_ns
        assert reader.clock_offset_ns(1) == 0
        ((apart,),) = reader.sql(
            "SELECT max(t) - min(t) FROM (SELECT rank, max(aligned_start_ns) AS t FROM ops_aligned "
            "WHERE step = 11 GROUP BY rank)"
        )
    assert apart < 1_000_000_000


def test_the_rank_that_went_non_finite_first_is_named(report: RankReport) -> None:
    assert report.nonfinite[0].rank == 1
    first = report.nonfinite[0]
    assert (first.step, first.op, first.error) == (10, "aten::log", True)
    (finding,) = [f for f in report.findings if f["rule"] == "first_nonfinite_rank"]
    assert finding["rank"] == 1


def test_the_rank_whose_parameters_differ_is_named(report: RankReport) -> None:
    assert report.divergence is not None
    assert report.divergence.first[0][:3] == (4, "parameter", "module.2.weight")
    assert {entry.rank for entry in report.divergence.by_rank if entry.first == 4} == {1}


def test_the_verb_tells_it_to_people_and_to_programs(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ranks", str(run)]) == 0
    text = capsys.readouterr().out
    assert "straggler: rank 2" in text and "rank 1 went non-finite first" in text
    assert main(["ranks", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["world_size"] == 4 and told["source"] == "collectives"
    assert main(["summary", str(run)]) == 0
    summary = capsys.readouterr().out
    assert "slowest rank 2" in summary and "first to go non-finite rank 1" in summary


# Without a process group: gloo itself is not always up again after a restart.
ELASTIC = """
    import os, pathlib, time
    import torch

    attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
    torch.ones(3) + 1
    pathlib.Path(f"ready-{attempt}-{rank}").touch()
    while len(list(pathlib.Path(".").glob(f"ready-{attempt}-*"))) < 2:
        time.sleep(0.01)
    if attempt == "0" and rank == "1":
        raise SystemExit("lost")
    if attempt == "0":
        time.sleep(120)  # until the launcher ends it
"""


def test_a_program_restarted_by_torchrun_leaves_a_shard_a_rank_and_attempt(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(ELASTIC))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "--max-restarts=1", "--monitor-interval=0.1",
               "-m", "tracelens", "run", "--capture", "ops", str(script)]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (trace,) = tmp_path.glob("train-*.tltrace")
    with open_engine(trace) as engine:
        report = analyse(engine)
    assert sorted(report.states) == ["r00000-0", "r00000-1", "r00001-0", "r00001-1"]
    assert (report.attempts, report.missing) == (1, ())
    assert report.states["r00000-1"] == report.states["r00001-1"] == "closed"
    assert "restarted" in [finding["rule"] for finding in report.findings]
