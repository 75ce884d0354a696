"""``sample=True``: what the host's Python does, by py-spy in a process beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracelens import sampling
from tracelens.config import Config
from tracelens.errors import ConfigError
from tracelens.storage.reader import open_trace

# Each step runs a function of its own name: the truth that the step of a sample is held against.
PROGRAM = """
import sys, time
import tracelens as tl

def work(n):
    exec(f"def inner_{n}(until):\\n while time.perf_counter() < until: sum(range(500))\\n"
         f"inner_{n}(time.perf_counter() + 0.02)", {"time": time})

if sys.argv[1] == "decorated":
    step = tl.trace(work)
    with tl.trace(sys.argv[2], sample=True, quiet=True):
        for n in range(60):
            step(n)
else:
    with tl.trace(sys.argv[2], sample=True, quiet=True) as session:
        for n in range(60):
            work(n)
            session.step()
"""


def sampled(tmp_path: Path, how: str, **environment: str) -> Path:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    subprocess.run(
        [sys.executable, str(program), how, str(tmp_path / "t")],
        check=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    return tmp_path / "t"


def may_sample() -> bool:
    try:
        sampling.py_spy()
    except sampling.StacksError:
        return False
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return not scope.exists() or scope.read_text().strip() in ("0", "1")


needs_py_spy = pytest.mark.skipif(not may_sample(), reason="py-spy may not look at processes here")


@needs_py_spy
def test_samples_of_a_decorated_step_carry_its_number(tmp_path: Path) -> None:
    with open_trace(sampled(tmp_path, "decorated")) as trace:
        rows = trace.sql("SELECT stack, step, count, t_ns FROM samples WHERE stack LIKE '%inner_%'")
        notes = [event["message"] for event in trace.events("note")]
    right = sum(count for stack, step, count, _ in rows if f"inner_{step} (" in stack)
    everything = sum(count for _, _, count, _ in rows)
    assert everything > 20
    assert right >= 0.99 * everything
    assert all(t_ns is not None and t_ns > 0 for *_, t_ns in rows)
    assert notes == []


@needs_py_spy
def test_steps_that_a_loop_marks_are_told_by_time_and_said_to_be_inexact(tmp_path: Path) -> None:
    with open_trace(sampled(tmp_path, "loop")) as trace:
        steps = {row[0] for row in trace.sql("SELECT DISTINCT step FROM samples")}
        (note,) = [event["message"] for event in trace.events("note")]
        threads = {row[0] for row in trace.sql("SELECT DISTINCT thread FROM samples")}
    assert len(steps) > 10
    assert "MainThread" in threads
    assert "decorate the step" in note


def test_without_py_spy_a_note_says_what_to_install(tmp_path: Path) -> None:
    nowhere = tmp_path / "bin"
    nowhere.mkdir()
    (nowhere / "python").symlink_to(sys.executable)
    code = (
        "import sys, tracelens as tl\n"
        "with tl.trace(sys.argv[1], sample=True, quiet=True) as s:\n    s.step()\n"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.executable = {str(nowhere / 'python')!r}\n" + code,
         str(tmp_path / "t")],
        check=True, timeout=120, env={**os.environ, "PATH": str(nowhere)},
    )  # fmt: skip
    with open_trace(tmp_path / "t") as trace:
        (note,) = [event["message"] for event in trace.events("note")]
    assert note.startswith("the host is not sampled: py-spy is not installed: pip install")


def test_a_py_spy_that_is_refused_is_told_with_what_to_do(tmp_path: Path) -> None:
    refused = tmp_path / "bin"
    refused.mkdir()
    tool = refused / "py-spy"
    tool.write_text("#!/bin/sh\necho 'Error: Permission Denied: Try running again' >&2\nexit 1\n")
    tool.chmod(0o755)
    code = (
        "import sys\n"
        f"sys.executable = {str(refused / 'python')!r}\n"
        "import tracelens as tl, time\n"
        "with tl.trace(sys.argv[1], sample=True, quiet=True) as s:\n"
        "    for _ in range(50):\n        time.sleep(0.01)\n        s.step()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], check=True, timeout=120)
    with open_trace(tmp_path / "t") as trace:
        (note,) = [event["message"] for event in trace.events("note")]
    assert "the host was not sampled" in note and "ptrace_scope=0" in note


def test_a_function_of_a_step_passes_arguments_results_and_exceptions() -> None:
    step = sampling.named_after(7)
    assert step.__code__.co_name == "tl_step_7"
    assert step(divmod, (7, 2), {}) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        step(divmod, (1, 0), {})


def test_the_environment_turns_profiling_and_sampling_on() -> None:
    made = Config().with_environment({"TRACELENS_PROFILE": "1", "TRACELENS_SAMPLE": "yes"})
    assert made.profile and made.sample
    assert not Config(profile=True).with_environment({"TRACELENS_PROFILE": "0"}).profile
    with pytest.raises(ConfigError, match="TRACELENS_SAMPLE='maybe'"):
        Config().with_environment({"TRACELENS_SAMPLE": "maybe"})


@needs_py_spy
def test_run_sample_needs_no_change_of_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        "def busy():\n    end = time.perf_counter() + 1.5\n"
        "    while time.perf_counter() < end: sum(range(500))\n"
        "busy()\nprint('done')\n"
    )
    command = [sys.executable, "-m", "tracelens", "run", "--sample", "-q", "-o"]
    done = subprocess.run(
        [*command, str(tmp_path / "t"), str(program)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    with open_trace(tmp_path / "t") as trace:
        rows = trace.sql("SELECT sum(count) FROM samples WHERE stack LIKE '%busy (%program.py%'")
    assert rows[0][0] > 20
