"""``tracelens run``: its own options, messages and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracelens.storage.reader import open_trace

TOY = Path(__file__).parents[1] / "toy"

TRAIN = """
import sys
import toyframework as toy
from tracelens.session import current

def loss_of(x):
    return toy.log(toy.Value(x))

for step, x in enumerate(map(float, sys.argv[1:])):
    loss = loss_of(x)
    session = current()
    if session is not None:
        if x == 0:
            session.backends[0].sink("loss", "loss", loss)
        session.step(loss=x)
print("done")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def run(folder: Path, *words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracelens", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TOY), **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_clean_run_says_where_the_trace_is(tmp_path: Path, script: Path) -> None:
    done = run(tmp_path, "run", script, 1, 2)
    (trace,) = tmp_path.glob("train-*.tltrace")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == f"tracelens: nothing non-finite found; trace in {trace.name}\n"


def test_a_finding_is_told_in_two_lines_and_leaves_the_exit_code(
    tmp_path: Path, script: Path
) -> None:
    done = run(tmp_path, "run", "-o", "t.tltrace", script, 1, 0)
    assert (done.returncode, done.stdout) == (0, "done\n")
    first, second = done.stderr.splitlines()
    assert "train.py:7" in first and "`return toy.log(toy.Value(x))`" in first
    assert second.endswith("tracelens why t.tltrace")
    why = run(tmp_path, "why", "t.tltrace", "--json")
    assert why.returncode == 1
    assert json.loads(why.stdout)["first_cause"]["source"]["line"] == 7


def test_quiet_says_nothing(tmp_path: Path, script: Path) -> None:
    assert run(tmp_path, "run", "-q", script, 0).stderr == ""


def test_raise_ends_the_program_with_the_report_and_exit_code_1(
    tmp_path: Path, script: Path
) -> None:
    done = run(tmp_path, "run", "--nonfinite", "raise", "-o", "t.tltrace", script, 1, 0, 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert "tracelens.errors.NonFiniteError" in done.stderr
    assert "tracelens/session.py" not in done.stderr
    with open_trace(tmp_path / "t.tltrace") as reader:
        assert [step["step"] for step in reader.steps()] == [0, 1]


def test_steps_and_capture_reach_the_session(tmp_path: Path, script: Path) -> None:
    source = (
        "from tracelens.session import current\n"
        "c = current().config\n"
        "print(c.capture, c.nonfinite, c.engine, [c.is_active(n) for n in range(4)])\n"
    )
    words = ["--capture", "ops", "--nonfinite", "warn", "--engine", "python", "--steps", "1:3"]
    done = run(tmp_path, "run", *words, "-c", source)
    assert done.stdout == "ops warn python [False, True, True, False]\n"


def test_options_after_the_program_belong_to_it(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "-q", "-c", "import sys; print(sys.argv)", "-o", "--capture", "-q")
    assert done.stdout == "['-c', '-o', '--capture', '-q']\n"


def test_an_unmarked_program_is_one_step(tmp_path: Path) -> None:
    run(tmp_path, "run", "-o", "t.tltrace", "-c", "import toyframework as t; t.log(t.Value(1.0))")
    with open_trace(tmp_path / "t.tltrace") as reader:
        assert [step["n_ops"] for step in reader.steps()] == [1]


def test_the_programs_exception_is_noted(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "-q", "-o", "t.tltrace", "-c", "raise OSError('disk')")
    assert done.returncode == 1
    with open_trace(tmp_path / "t.tltrace") as reader:
        assert [note["message"] for note in reader.notes()] == ["OSError: disk"]


def test_a_killed_program_leaves_a_readable_trace(tmp_path: Path, script: Path) -> None:
    script.write_text(
        TRAIN.replace('print("done")', "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    )
    done = run(tmp_path, "run", "-o", "t.tltrace", "--capture", "ops", script, 3, 2, 0)
    assert done.returncode == -9
    why = run(tmp_path, "why", "t.tltrace", "--json")
    assert why.returncode == 1
    assert json.loads(why.stdout)["first_cause"]["op"] == "toy::log"


def test_a_decorated_function_joins_the_run(tmp_path: Path, script: Path) -> None:
    script.write_text(
        "import tracelens as tl\n@tl.trace\ndef step(): ...\nfor _ in range(3): step()\n"
    )
    run(tmp_path, "run", "-o", "t.tltrace", script)
    with open_trace(tmp_path / "t.tltrace") as reader:
        assert [step["step"] for step in reader.steps()] == [0, 1, 2]
    assert len(list(tmp_path.glob("*.tltrace"))) == 1


def test_a_session_inside_a_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "-c", "import tracelens as tl\nwith tl.trace('b'): pass")
    assert done.returncode == 1
    assert "a session opened by tracelens run already records" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no script"),
        (b"\x7fELF\x02\x01\x00\x00", "is not a Python program"),
        (b"#!/bin/sh\necho hello\n", "is not a Python program"),
        ("folder", "is a directory without __main__.py"),
    ],
)
def test_what_is_no_python_program_is_refused_in_one_line(
    tmp_path: Path, content: bytes | str | None, message: str
) -> None:
    target = tmp_path / "program"
    if content == "folder":
        target.mkdir()
    elif isinstance(content, bytes):
        target.write_bytes(content)
    done = run(tmp_path, "run", "program")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not list(tmp_path.glob("*.tltrace"))


def test_a_missing_module_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "-m", "no_such_module_here")
    assert done.returncode == 2
    assert done.stderr == "tracelens run: no module named no_such_module_here can be run\n"


@pytest.mark.parametrize("place", ["existing", "file/t.tltrace"])
def test_an_output_that_cannot_be_written_stops_before_the_program_runs(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "existing").mkdir()
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "run", "-o", place, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_variable_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "-c", "pass", TRACELENS_NONFINITE="explode")
    assert done.returncode == 2
    assert "TRACELENS_NONFINITE='explode'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
