"""Every verb on real traces: what it prints where, and its exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tracelens as tl
from tracelens.cli import VERBS, main

sys.path.insert(0, str(Path(__file__).parent))
from recordings import BAD, CLEAN, MASKED, TOY, record

READERS = ("why", "summary", "verify")


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(BAD, tmp_path_factory.mktemp("bad") / "bad.tltrace")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(CLEAN, tmp_path_factory.mktemp("clean") / "clean.tltrace")


class Done:
    """What a verb printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> Done:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


# why


def test_why_names_the_first_cause_and_exits_with_1(run: Any, bad: Path) -> None:
    done = run("why", bad)
    assert (done.code, done.err) == (1, "")
    assert "log" in done.out
    assert "the loss" in done.out


def test_why_json_has_every_key_of_its_schema(run: Any, bad: Path) -> None:
    done = run("why", bad, "--json")
    assert done.code == 1
    told = done.json
    assert {"verdict", "first_cause", "sink", "path", "findings", "trace"} <= set(told)
    assert told["verdict"] == "non-finite"
    first = told["first_cause"]
    keys = {
        "kind", "op", "phase", "step", "rank", "module", "source", "inputs", "outputs", "why",
        "fix", "exact",
    }  # fmt: skip
    assert keys <= set(first)
    assert (first["kind"], first["op"], first["phase"]) == ("inf", "toy::log", "forward")
    assert (first["step"], first["rank"], first["exact"]) == (2, 0, True)
    assert {"file", "line", "function", "code"} == set(first["source"])
    assert told["trace"]["path"] == str(bad)
    keys = {"rule", "severity", "source", "message", "advice", "step"}
    assert all(keys <= set(finding) for finding in told["findings"])


def test_why_of_a_clean_trace_exits_with_0(run: Any, clean: Path) -> None:
    done = run("why", clean, "--json")
    assert done.code == 0
    assert done.json["verdict"] == "clean"
    assert done.json["first_cause"] is None


def test_why_of_a_masked_value_is_for_information(run: Any, tmp_path: Path) -> None:
    done = run("why", record(MASKED, tmp_path / "m.tltrace"), "--json")
    assert done.code == 0
    assert done.json["verdict"] == "masked"
    assert {finding["severity"] for finding in done.json["findings"]} == {"info"}


def test_guard_level_keeps_what_why_needs(run: Any, tmp_path: Path) -> None:
    done = run("why", record(BAD, tmp_path / "g.tltrace", "guard"), "--json")
    assert done.json["first_cause"]["op"] == "toy::log"


def test_why_is_coloured_only_where_asked(
    run: Any, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in run("why", bad).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in run("why", bad).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("why", bad).out


# summary


def test_summary_counts_steps_ops_and_findings(run: Any, bad: Path) -> None:
    found = run("summary", bad, "--json").json
    assert (found["steps"]["count"], found["steps"]["first"], found["steps"]["last"]) == (3, 0, 2)
    assert found["ops"]["recorded"] == found["steps"]["n_ops"] == 6
    assert found["ops"]["nonfinite"] == found["steps"]["hits"] == 2
    assert found["scalars"]["lr"] == {
        "count": 3, "first": 0.1, "last": 0.1, "last_step": 2, "min": 0.1, "max": 0.1,
    }  # fmt: skip
    assert [finding["step"] for finding in found["findings"]] == [2]


def test_summary_for_people_shows_the_same(run: Any, bad: Path) -> None:
    done = run("summary", bad)
    assert (done.code, done.err) == (0, "")
    for text in ("3 (0 to 2)", "6 recorded of 6 that ran", "2 with a non-finite output", "lr"):
        assert text in done.out


# query


def test_query_prints_an_aligned_table(run: Any, bad: Path) -> None:
    done = run("query", bad, "SELECT name, count(*) AS n FROM ops GROUP BY 1 ORDER BY 1")
    assert done.code == 0
    assert done.out == "name      n\ntoy::log  3\ntoy::mul  3\n"


def test_query_prints_json_and_csv(run: Any, bad: Path) -> None:
    sql = "SELECT step, vmin FROM ops WHERE name = 'toy::log' ORDER BY step LIMIT 2"
    told = run("query", bad, sql, "--json").json
    assert told["columns"] == ["step", "vmin"]
    assert [row[0] for row in told["rows"]] == [0, 1]
    assert told["truncated"] is False
    rows = list(csv.reader(io.StringIO(run("query", bad, sql, "--csv").out)))
    assert rows[0] == ["step", "vmin"] and len(rows) == 3


def test_query_says_when_rows_were_left_out(run: Any, bad: Path) -> None:
    done = run("query", bad, "SELECT step FROM ops", "--limit", "2")
    assert len(done.out.splitlines()) == 3
    assert "only the first 2 rows" in done.err


def test_query_reads_sql_from_stdin(run: Any, bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS one"))
    assert run("query", bad, "-").out == "one\n  1\n"


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE ops",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT nothing FROM ops",
        "COPY ops TO '/tmp/x.csv'",
        "",
        "SELECT 1; SELECT 2",
    ],
)
def test_a_query_that_is_not_one_select_of_the_trace_is_refused_in_one_line(
    run: Any, bad: Path, sql: str
) -> None:
    done = run("query", bad, sql)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("tracelens query: ")


# verify, repair, export


def test_verify_finds_a_changed_byte(run: Any, tmp_path: Path) -> None:
    trace = record(CLEAN, tmp_path / "t.tltrace")
    assert run("verify", trace).code == 0
    assert run("verify", trace, "--json").json == {"ok": True, "problems": []}
    segment = next((trace / "ops").glob("shard=*/*.parquet"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 3] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(data)
    done = run("verify", trace, "--json")
    assert done.code == 1
    assert any(segment.name in problem["message"] for problem in done.json["problems"])
    assert run("why", trace).code in (0, 1)


@pytest.mark.parametrize("capture", ["guard", "ops"])
def test_repair_right_after_a_kill_loses_nothing(run: Any, tmp_path: Path, capture: str) -> None:
    # The program's helper process may be sealing the trace at this moment, or not have begun.
    source = BAD + "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    trace = tmp_path / "t.tltrace"
    with pytest.raises(subprocess.CalledProcessError):
        record(source, trace, capture)
    assert run("repair", trace).code == 0
    assert run("verify", trace, "--json").json == {"ok": True, "problems": []}
    assert run("why", trace, "--json").json["first_cause"]["op"] == "toy::log"
    assert run("repair", trace).out == "nothing to repair\n"
    assert run("repair", trace, "--json").json["sealed"] == []


@pytest.mark.parametrize("form", ["csv", "npz", "perfetto"])
def test_export_writes_a_file_and_prints_its_path(
    run: Any, bad: Path, tmp_path: Path, form: str
) -> None:
    target = tmp_path / "out"
    done = run("export", bad, "--format", form, "-o", target)
    assert (done.code, done.out) == (0, f"{target}\n")
    assert target.stat().st_size > 0
    again = run("export", bad, "--format", form, "-o", target)
    assert again.code == 2 and "already exists" in again.err
    assert run("export", bad, "--format", form, "-o", target, "--force").code == 0


def test_export_names_the_file_after_the_trace(
    run: Any, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", bad, "--format", "perfetto").out == "bad.json\n"


def test_export_leaves_out_steps(run: Any, bad: Path, tmp_path: Path) -> None:
    done = run("export", bad, "--format", "csv", "--steps", "1:2", "-o", tmp_path / "a", "--json")
    assert done.json["rows"] == 2


@pytest.mark.parametrize("steps", ["1", "a:b", "2:2", "3:1", "-1:2"])
def test_a_wrong_range_of_steps_is_refused(run: Any, bad: Path, tmp_path: Path, steps: str) -> None:
    done = run("export", bad, "--format", "csv", f"--steps={steps}", "-o", tmp_path / "a")
    assert done.code == 2
    assert "--steps" in done.err


# doctor and the overview


def test_doctor_tells_versions_and_engines(run: Any) -> None:
    found = run("doctor", "--json").json
    assert found["tracelens"] == tl.__version__
    assert found["packages"]["numpy"]
    assert "torch" in found["backends"]


def test_doctor_survives_a_broken_framework(tmp_path: Path) -> None:
    (tmp_path / "toyframework.py").write_text("raise OSError('no such library')\n")
    done = subprocess.run(
        [sys.executable, "-m", "tracelens", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{TOY}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "no such library" in json.loads(done.stdout)["backends"]["toyframework"]["why"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run: Any, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert f"usage: tracelens {verb}" in done.out


def test_the_overview_names_every_verb(run: Any) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(f"\n    {verb}" in done.out for verb in VERBS)
    assert run().code == 2


def test_version(run: Any) -> None:
    assert run("--version").out == f"tracelens {tl.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [["bogus"], ["why"], ["why", "a", "b"], ["run"], ["run", "-m"], ["run", "--capture", "x", "a"],
     ["query", "a"], ["export", "a"], ["export", "a", "--format", "x"], ["--bogus"],
     ["run", "--bogus", "a.py"], ["query", "a", "b", "--limit", "0"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2_and_prints_nothing_on_stdout(run: Any, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err
    assert "Traceback" not in done.err


# Traces that cannot be read


def unreadable(kind: str, folder: Path, good: Path) -> Path:
    """Make something that is not a readable trace."""
    path = folder / "x.tltrace"
    if kind == "missing":
        return path
    if kind == "a file":
        path.write_text("hello")
        return path
    path.mkdir()
    if kind == "foreign":
        (path / "readme.txt").write_text("hello")
    elif kind == "torn manifest":
        text = (good / "manifest.json").read_text()
        (path / "manifest.json").write_text(text[: len(text) // 2])
    elif kind == "newer":
        manifest = json.loads((good / "manifest.json").read_text())
        manifest["version"] = manifest["min_reader"] = "9.0"
        (path / "manifest.json").write_text(json.dumps(manifest))
    elif kind == "another format":
        (path / "manifest.json").write_text('{"format": "something", "version": "1.0"}')
    return path


@pytest.mark.parametrize(
    "kind",
    ["missing", "a file", "empty", "foreign", "torn manifest", "newer", "another format"],
)
@pytest.mark.parametrize("verb", [*READERS, "query", "export", "repair"])
def test_an_unreadable_trace_is_one_line_and_exit_code_3(
    run: Any, verb: str, kind: str, tmp_path: Path, clean: Path
) -> None:
    more = {"query": ["SELECT 1"], "export": ["--format", "csv", "-o", tmp_path / "out"]}
    done = run(verb, unreadable(kind, tmp_path, clean), *more.get(verb, []))
    assert (done.code, done.out) == (3, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(f"tracelens {verb}: ")


def test_a_closed_pipe_is_silent(bad: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tracelens", "query", bad, "SELECT range FROM range(100000)",
         "--limit", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert errors == b""
