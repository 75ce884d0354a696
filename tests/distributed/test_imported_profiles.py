"""Profiles of several ranks that another tool recorded: the generated set has its straggler."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tracelens.cli import main

RECORDED = Path(__file__).parents[3] / "shared/data/generated_profiles/ddp_gloo_4ranks_straggler2"


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded profiles are not here")
def test_the_straggler_of_four_gloo_ranks_and_its_cause_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("tracelens.convert.kineto") is None:
        pytest.skip("no importer of PyTorch's profiles")
    trace = str(tmp_path / "four.tltrace")
    assert main(["import", str(RECORDED), "-o", trace]) == 0
    capsys.readouterr()
    assert main(["ranks", trace, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranks"] == [0, 1, 2, 3] and told["missing"] == []
    (late,) = [finding for finding in told["findings"] if finding["rule"] == "straggler"]
    # Rank 2 sleeps 40 ms a step while it loads its data.
    assert late["rank"] == 2 and "## data_load ##" in late["advice"]
    by_rank = {wait["rank"]: wait for wait in told["waits"]}
    assert by_rank[2]["last"] == by_rank[2]["calls"] == 4
    for rank in (0, 1, 3):
        assert 4 * 30e6 < by_rank[rank]["waited_ns"] < 4 * 50e6
