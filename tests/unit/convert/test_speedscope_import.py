"""Samples of py-spy and speedscope as traces."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from profile_files import real
from tracelens.cli import main
from tracelens.convert import pyspy, speedscope
from tracelens.convert.importers import importer_of
from tracelens.errors import TraceError
from tracelens.storage.reader import open_trace
from tracelens.storage.verify import verify

RAW = """thread (0x7F01): MainThread;<module> (train.py:9);tl_step_3 (train.py:4);forward (m.py:2) 7
thread (0x7F01): MainThread;<module> (train.py:9);Loop.tl_step_4 (train.py:4);forward (m.py:2) 5
thread (0x7F02): loader;run (data.py:1) 12
"""


def rows_of(path: Path, out: Path, query: str) -> list[tuple[object, ...]]:
    importer_of(path)(path, out)
    assert verify(out) == []
    with open_trace(out) as trace:
        return trace.sql(query)


@pytest.mark.parametrize("packed", [False, True])
def test_raw_stacks_tell_their_step_by_a_frame(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "out.raw"
    path.write_bytes(gzip.compress(RAW.encode()) if packed else RAW.encode())
    query = "SELECT thread, step, count, duration_ns, t_ns, stack FROM samples ORDER BY count"
    assert rows_of(path, tmp_path / "t", query) == [
        ("MainThread", 4, 5, 50_000_000, None,
         "<module> (train.py:9)\nLoop.step (train.py:4)\nforward (m.py:2)"),
        ("MainThread", 3, 7, 70_000_000, None,
         "<module> (train.py:9)\nstep (train.py:4)\nforward (m.py:2)"),
        ("loader", None, 12, 120_000_000, None, "run (data.py:1)"),
    ]  # fmt: skip


def test_lines_of_raw_stacks_that_are_torn_are_told(tmp_path: Path) -> None:
    path = tmp_path / "out.raw"
    path.write_text(RAW + "cut off in the mid")
    result = pyspy.convert(path, tmp_path / "t")
    assert result.rows == 3
    assert result.problems == ("1 lines are not a stack and a count, and are left out",)


def chrome(*events: tuple[str, str, int]) -> str:
    return json.dumps(
        [
            {"ph": phase, "name": name, "ts": ts, "pid": 1, "tid": 2, "cat": "py-spy",
             "args": {"filename": "a.py", "line": 3}}
            for phase, name, ts in events
        ],
        separators=(",", ":"),
    )  # fmt: skip


def test_the_changes_of_a_stack_become_samples_with_times(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text(
        chrome(("B", "main", 10), ("B", "tl_step_5", 10), ("E", "tl_step_5", 30), ("E", "main", 40))
    )
    query = "SELECT step, t_ns, duration_ns, stack FROM samples ORDER BY t_ns"
    assert rows_of(path, tmp_path / "t", query) == [
        (5, 10_000, 20_000, "main (a.py:3)\nstep (a.py:3)"),
        (None, 30_000, 10_000, "main (a.py:3)"),
    ]
    with open_trace(tmp_path / "t") as trace:
        (step,) = trace.steps()
        assert (step["step"], step["start_ns"], step["duration_ns"]) == (5, 10_000, 20_000)


def test_a_chrome_trace_of_py_spy_that_is_cut_off_keeps_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text(chrome(("B", "f", 10), ("E", "f", 30), ("B", "g", 40), ("E", "g", 50))[:-30])
    result = pyspy.convert(path, tmp_path / "t")
    assert result.rows == 1
    assert "cut off" in result.problems[0]


def scope(**profile: object) -> str:
    return json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "shared": {"frames": [{"name": "a", "file": "a.py", "line": 1}, {"name": "tl_step_2"}]},
            "profiles": [{"name": "p", "startValue": 0, "endValue": 9, **profile}],
        }
    )


def test_sampled_and_evented_profiles_say_the_same(tmp_path: Path) -> None:
    query = "SELECT thread, step, t_ns, duration_ns, stack FROM samples ORDER BY t_ns"
    wanted = [("p", None, 0, 4_000, "a (a.py:1)"), ("p", 2, 4_000, 5_000, "a (a.py:1)\nstep")]
    sampled = tmp_path / "a.speedscope.json"
    sampled.write_text(
        scope(type="sampled", unit="microseconds", samples=[[0], [0, 1], []], weights=[4, 5, 1])
    )
    assert rows_of(sampled, tmp_path / "a", query) == wanted
    opens = [{"type": "O", "frame": 0, "at": 0}, {"type": "O", "frame": 1, "at": 4}]
    closes = [{"type": "C", "frame": 1, "at": 9}, {"type": "C", "frame": 0, "at": 9}]
    evented = tmp_path / "b.speedscope.json"
    evented.write_text(scope(type="evented", unit="microseconds", events=opens + closes))
    assert rows_of(evented, tmp_path / "b", query) == wanted


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ({"type": "sampled", "samples": [[0], [7]], "weights": [1, 1]}, "1 samples name a frame"),
        ({"type": "sampled", "samples": [[0], [0]], "weights": [1]}, "2 samples and 1 weights"),
        ({"type": "sampled", "unit": "bytes", "samples": [[0]], "weights": [8]}, "no time"),
        ({"type": "evented", "events": [{"type": "O", "frame": 0, "at": 0}]}, "never closed"),
        (
            {"type": "evented", "events": [
                {"type": "O", "frame": 0, "at": 0}, {"type": "O", "frame": 1, "at": 2},
                {"type": "C", "frame": 0, "at": 3}]},
            "closes a frame that is not the innermost",
        ),
    ],
)  # fmt: skip
def test_damage_of_a_profile_is_told_and_the_rest_kept(
    profile: dict[str, object], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.speedscope.json"
    path.write_text(scope(**profile))
    result = speedscope.convert(path, tmp_path / "t")
    assert told in result.problems[0]
    assert result.rows >= 1


@pytest.mark.parametrize(
    "text", ["{", '{"shared": 3, "profiles": []}', '{"$schema": 1}', "[" * 5000]
)
def test_what_is_not_speedscopes_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.speedscope.json"
    path.write_text(text)
    with pytest.raises(TraceError):
        speedscope.convert(path, tmp_path / "t")
    assert main(["import", str(path), "-o", str(tmp_path / "t")]) == 3


def test_every_profile_of_speedscopes_own_files_is_read(tmp_path: Path) -> None:
    folder = real("speedscope_edge_cases", "speedscope")
    query = (
        "SELECT thread, count(*), sum(duration_ns), sum(count) FROM samples GROUP BY 1 ORDER BY 1"
    )
    two = folder / "0.6.0" / "two-sampled.speedscope.json"
    assert rows_of(two, tmp_path / "a", query) == [
        ("one", 5, 14 * 10**9, 5), ("two", 5, 14 * 10**9, 5),
    ]  # fmt: skip
    simple = folder / "0.0.1" / "simple.speedscope.json"
    assert rows_of(simple, tmp_path / "b", query) == [("simple.txt", 3, 0, 14)]
    for name in ("incomplete-trace.json", "out-of-order-events.json"):
        broken = folder / "invalid" / name
        assert len(importer_of(broken)(broken, tmp_path / name).problems) == 1


PROGRAM = """
import types
def work():
    return sum(i * i for i in range(3_000_000))
for step in range(3):
    code = work.__code__.replace(co_name=f"tl_step_{step}")
    if hasattr(code, "co_qualname"):
        code = code.replace(co_qualname=f"tl_step_{step}")
    types.FunctionType(code, globals())()
"""


@pytest.mark.parametrize("form", ["raw", "speedscope", "chrometrace"])
def test_what_py_spy_records_tells_the_steps(form: str, tmp_path: Path) -> None:
    tool = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("py-spy is not installed")
    out = tmp_path / f"out.{form}"
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [tool, "record", "-r", "100", "-f", form, "-o", str(out), "--",
               sys.executable, str(tmp_path / "program.py")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode or not out.exists():
        pytest.skip(f"py-spy may not look at processes here: {done.stderr[-200:]}")
    query = "SELECT DISTINCT step FROM samples WHERE step IS NOT NULL ORDER BY 1"
    assert rows_of(out, tmp_path / "t", query) == [(0,), (1,), (2,)]
