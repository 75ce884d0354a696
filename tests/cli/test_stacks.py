"""``tracelens stacks`` and ``attach``: a running program's stacks, step and op."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from recordings import TOY

from trace_builder import dead_pid
from tracelens.stacks import StacksDenied, denial, package_of

PROGRAM = """
import sys, time
import toyframework as toy
import tracelens as tl

def hang(value):
    print("hanging", flush=True)
    sys.stdin.readline()

def train(session):
    for step, x in enumerate([2.0, 1.0, 3.0]):
        loss = toy.log(toy.Value(x))
        if step == 2:
            hang(loss)
        session.step(loss=loss)

with tl.trace(sys.argv[1], capture="ops", quiet=True) as session:
    train(session)
"""

needs_py_spy = pytest.mark.skipif(
    not (shutil.which("py-spy") or Path(sys.executable).with_name("py-spy").exists()),
    reason="py-spy is not installed",
)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that has come to step 2 and waits there for a line on stdin."""
    (tmp_path / "train.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run.tltrace")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOY)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        yield process
        if process.poll() is None:
            process.communicate("\n", timeout=60)


def tracelens(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracelens", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


@needs_py_spy
def test_stacks_tell_where_a_hung_training_is_and_its_last_op(
    hanging: subprocess.Popen[str], tmp_path: Path
) -> None:
    done = tracelens("stacks", str(hanging.pid))
    if "may not be read" in done.stderr:
        pytest.skip("this machine does not let a process be read")
    assert done.returncode == 0, done.stderr
    assert f"trace {tmp_path / 'run.tltrace'}" in done.stdout
    assert "step 2" in done.stdout
    assert "toy::log" in done.stdout or "log" in done.stdout
    assert "  hang  " in done.stdout
    assert "  train  " in done.stdout
    told = json.loads(tracelens("stacks", str(hanging.pid), "--json").stdout)
    assert told["progress"]["step"] == 2
    assert told["problem"] == ""
    functions = [frame["function"] for frame in told["threads"][0]["frames"]]
    assert functions[:2] == ["hang", "train"] or "hang" in functions
    assert hanging.poll() is None, "the program goes on"


@needs_py_spy
def test_attach_looks_once_or_follows_until_the_program_ends(
    hanging: subprocess.Popen[str],
) -> None:
    once = tracelens("attach", str(hanging.pid), "--once")
    if "may not be read" in once.stderr:
        pytest.skip("this machine does not let a process be read")
    assert once.returncode == 0, once.stderr
    assert "  hang  " in once.stdout
    with subprocess.Popen(
        [sys.executable, "-m", "tracelens", "attach", str(hanging.pid), "--interval", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        while "  hang  " not in following.stdout.readline():
            assert following.poll() is None
        hanging.communicate("\n", timeout=60)
        said, narrated = following.communicate(timeout=60)
    assert following.returncode == 0
    assert "has ended" in narrated
    assert "step 2" in said


@pytest.mark.parametrize("verb", ["stacks", "attach"])
def test_a_process_that_is_gone_is_told_in_one_line(verb: str) -> None:
    done = tracelens(verb, str(dead_pid()))
    assert done.returncode == 2
    assert "is running" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_wrong_usage_is_refused() -> None:
    assert tracelens("stacks", "not-a-number").returncode == 2
    assert tracelens("attach", "1", "--interval", "0").returncode == 2


def test_a_missing_py_spy_is_told_with_how_to_install_it(tmp_path: Path) -> None:
    script = (
        "import sys, tracelens.stacks as s\n"
        "s.shutil.which = lambda name: None\n"
        "sys.executable = sys.argv[1] + '/python'\n"
        "from tracelens.cli import main\n"
        "sys.exit(main(['stacks', sys.argv[2]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(os.getpid())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'tracelens-toolkit[debug]'" in done.stderr


def test_a_process_that_may_not_be_read_is_told_with_what_allows_it() -> None:
    told = "Error: Permission denied (os error 13)\nReason: ptrace is restricted"
    reason = denial(os.getpid(), told)
    assert isinstance(reason, StacksDenied)
    assert reason.exit_code == 3
    assert "ptrace_scope" in str(reason)
    assert "\n" not in str(reason)


@pytest.mark.parametrize(
    ("file", "package"),
    [
        ("/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", "torch"),
        ("/venv/lib/python3.11/site-packages/einops.py", "einops"),
        ("/usr/lib/python3.11/threading.py", "python"),
        ("<frozen importlib._bootstrap>", "python"),
        ("/home/me/train.py", ""),
        ("train.py", ""),
    ],
)
def test_frames_are_told_apart_by_what_they_belong_to(file: str, package: str) -> None:
    assert package_of(file) == package
