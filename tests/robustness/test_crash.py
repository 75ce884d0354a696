"""Programs killed with SIGKILL at random moments lose no committed record."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_trial import trial


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("victims", ["program", "both"])
@pytest.mark.parametrize("mode", ["stream", "flight"])
def test_a_killed_writer_loses_no_committed_record(
    tmp_path: Path, mode: str, victims: str, seed: int
) -> None:
    outcome = trial(tmp_path, mode, victims, seed)
    assert outcome.committed > 0
    assert (outcome.lost_before_repair, outcome.lost, outcome.problems) == (0, 0, [])
