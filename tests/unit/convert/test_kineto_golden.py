"""Real profiles of V100 to H100, MI210 to MI300X: the figures agree with what peers agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracelens.convert import kineto
from tracelens.storage.reader import open_trace

DATA = Path(__file__).parents[3].parent / "shared" / "data"
GOLDEN_FILE = DATA / "golden_profiles.json"
GOLDEN: dict[str, dict[str, Any]] = (
    json.loads(GOLDEN_FILE.read_text()) if GOLDEN_FILE.exists() else {}
)
NAME_LENGTH = 120

if not GOLDEN:
    pytest.skip("the profiles are data of others, and not here", allow_module_level=True)


def union_us(intervals: list[tuple[int, int]]) -> float:
    """Return the length of the union of intervals in ns, as µs."""
    total, end = 0, -(1 << 63)
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total / 1000


@pytest.mark.parametrize("name", GOLDEN)
def test_a_real_profile_has_the_figures_that_peers_agree_on(name: str, tmp_path: Path) -> None:
    golden = GOLDEN[name]
    target = tmp_path / "out.tltrace"
    result = kineto.convert(DATA / golden["file"], target)
    assert result.problems == ()
    reader = open_trace(target)
    work = [
        tuple(row)
        for row in reader.sql("SELECT kind, name, start_ns, start_ns + duration_ns FROM kernels")
    ]
    kernels = [row for row in work if row[0] in ("kernel", "comm")]
    assert len(kernels) == golden["n_kernels"]
    assert sum(row[0] == "comm" for row in kernels) == golden["n_comm"]
    total_us = sum(row[3] - row[2] for row in kernels) / 1000
    assert total_us == pytest.approx(golden["kernel_sum_us"], abs=2e-3)
    every = [(row[2], row[3]) for row in work]
    span_us = (max(e for _, e in every) - min(s for s, _ in every)) / 1000 if every else 0
    assert span_us == pytest.approx(golden["span_us"], rel=1e-3)
    assert union_us(every) == pytest.approx(golden["busy_us"], rel=1e-3)
    if golden["idle_pct"] is not None:
        idle = 100 * (1 - union_us(every) / span_us)
        assert idle == pytest.approx(golden["idle_pct"], abs=0.25)
    comm = [(row[2], row[3]) for row in work if row[0] == "comm"]
    assert union_us(comm) == pytest.approx(golden["comm_us"], rel=1e-3)
    steps = {
        f"ProfilerStep#{step}": duration / 1000
        for step, duration in reader.sql("SELECT step, duration_ns FROM steps")
    }
    expected = {step: told["dur_us"] for step, told in golden["steps"].items()}
    assert steps == pytest.approx(expected, abs=1e-3)
    assert top(kernels) == [
        [text, count, pytest.approx(total, abs=2e-3)] for text, count, total in golden["top5"]
    ]


def top(kernels: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the five kernels of the largest total: name, count, µs."""
    totals: dict[str, list[int]] = {}
    for _, name, start, end in kernels:
        told = totals.setdefault(name, [0, 0])
        told[0] += 1
        told[1] += end - start
    largest = sorted(totals.items(), key=lambda item: -item[1][1])[:5]
    return [[name[:NAME_LENGTH], count, total / 1000] for name, (count, total) in largest]


def test_times_of_absolute_microseconds_do_not_overlap_by_rounding(tmp_path: Path) -> None:
    # With float64 times eight of these kernels seem to overlap others of their stream.
    target = tmp_path / "out.tltrace"
    kineto.convert(DATA / GOLDEN["shared/ns_resolution_v100"]["file"], target)
    query = "SELECT stream, start_ns, start_ns + duration_ns FROM kernels ORDER BY 1, 2"
    found = np.array([tuple(row) for row in open_trace(target).sql(query)])
    same = found[1:, 0] == found[:-1, 0]
    assert not (same & (found[1:, 1] < found[:-1, 2])).any()


def test_speedscopes_odd_traces_are_all_imported(tmp_path: Path) -> None:
    folder = DATA / "profiles" / "speedscope_edge_cases" / "trace-event"
    files = sorted(folder.glob("*.json"))
    told = {}
    for file in files:
        if file.name == "simple-with-samples.json":  # it holds samples only
            continue
        result = kineto.convert(file, tmp_path / f"{file.stem}.tltrace")
        assert result.rows > 0
        told[file.stem] = [line.removeprefix(f"{file}: ") for line in result.problems]
    assert told["too-many-end-events"] == ["ends of ranges that never began are left out (2)"]
    assert told["only-begin-events"] == ["ranges that never end are ended with their thread (3)"]
    assert told["matching-x"] == told["zero-duration-events"] == []


def test_a_timeline_of_horovod_says_which_tensor_was_reduced(tmp_path: Path) -> None:
    file = DATA / "profiles" / "horovod_timelines" / "horovod_timeline_small.json"
    kineto.convert(file, tmp_path / "out.tltrace")
    found = open_trace(tmp_path / "out.tltrace").sql(
        "SELECT count(*), count(DISTINCT args) FROM spans WHERE name = 'NEGOTIATE_ALLREDUCE'"
    )
    assert found[0][0] == found[0][1] > 1


def test_an_archive_of_eight_ranks_is_one_trace(tmp_path: Path) -> None:
    target = tmp_path / "out.tltrace"
    result = kineto.convert(DATA / "profiles" / "v100_dlrm_r2of8" / "dlrm_kineto.tar.gz", target)
    assert result.problems == ()
    reader = open_trace(target)
    assert reader.ranks() == list(range(8))
    comm = "SELECT rank, count(*) > 0 FROM kernels WHERE kind = 'comm' GROUP BY rank ORDER BY rank"
    assert [tuple(row) for row in reader.sql(comm)] == [(rank, True) for rank in range(8)]
