"""Processes of one run record to one trace, whoever comes first, dies, or never comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes_of import run_ranks

import tracelens as tl
from tracelens.analysis.ranks import analyse
from tracelens.engines import open_engine
from tracelens.errors import SessionError
from tracelens.processes import Place, launch, place
from tracelens.storage.reader import open_trace

PROGRAM = """
    import os, signal, sys
    import tracelens as tl

    with tl.trace(sys.argv[1], capture="ops", quiet=True) as session:
        for number in range(3):
            session.step(loss=number)
        if os.environ["RANK"] == os.environ.get("DIES"):
            session.note("last", "words")
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_that_start_at_once_all_join_one_trace(tmp_path: Path) -> None:
    run_ranks(tmp_path, PROGRAM, 6, "run.tltrace")
    with open_trace(tmp_path / "run.tltrace") as reader:
        assert reader.ranks() == list(range(6))
        assert reader.manifest.world_size == 6
        assert reader.health().lines() == []
        steps = reader.sql("SELECT rank, count(*) FROM steps GROUP BY rank ORDER BY rank")
    assert steps == [(rank, 3) for rank in range(6)]


def test_a_rank_that_dies_and_one_that_never_came_are_told(tmp_path: Path) -> None:
    dies = {rank: {"DIES": "1"} for rank in range(3)}
    run_ranks(tmp_path, PROGRAM, 3, "run.tltrace", world_size=4, may_fail=True, extra=dies)
    with open_engine(tmp_path / "run.tltrace") as engine:
        report = analyse(engine)
    assert (report.ranks, report.world_size, report.missing) == ((0, 1, 2), 4, (3,))
    assert report.states["r00001-0"] == "killed"
    rules = [finding["rule"] for finding in report.findings]
    assert rules == ["missing_rank", "killed_rank"]
    with open_trace(tmp_path / "run.tltrace") as reader:
        assert [note["message"] for note in reader.notes(rank=1)] == ["words"]


def test_ranks_of_another_launch_do_not_join_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ranks(tmp_path, PROGRAM, 2, "run.tltrace")
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SessionError, match="holds another run"), tl.trace(tmp_path / "run.tltrace"):
        pass


def test_ranks_that_name_no_path_meet_in_one_trace(tmp_path: Path) -> None:
    program = PROGRAM.replace("sys.argv[1], ", "")
    run_ranks(tmp_path, program, 3)
    (trace,) = tmp_path.glob("train-*.tltrace")
    with open_trace(trace) as reader:
        assert reader.ranks() == [0, 1, 2]


def test_the_place_of_a_process_is_read_as_its_launcher_tells_it() -> None:
    cluster = '{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]}, "task": '
    assert place({"RANK": "1", "WORLD_SIZE": "2", "PMI_RANK": "0"}) == Place(1, 2)
    assert place({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}) == Place(1, 3)
    assert place({"TF_CONFIG": cluster + '{"type": "worker", "index": 1}}'}) == Place(2, 3)
    assert place({"TF_CONFIG": cluster + '{"type": "evaluator", "index": 0}}'}) == Place(0, 1)
    assert place({"TF_CONFIG": "{"}) == place({"RANK": "-1"}) == Place(0, 1)


def test_a_launch_has_one_name_on_every_rank_and_another_next_time() -> None:
    first = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert launch({**first, "RANK": "0"}) == launch({**first, "RANK": "1"}) != ""
    assert launch(first) != launch({**first, "MASTER_PORT": "2"})
    elastic = {"TORCHELASTIC_RUN_ID": "x"}
    assert launch({**first, **elastic}) == launch({"MASTER_PORT": "2", **elastic})
    assert launch({}) == ""
