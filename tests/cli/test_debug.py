"""``tracelens debug``: the prompt, from a script, from a pipe and from a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from trace_builder import TraceBuilder, training_run

PROMPT = r"\(tracelens\) "


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 ops; op 19 makes a NaN that reaches the loss."""
    return training_run(tmp_path_factory.mktemp("debug") / "run.tltrace").close()


def debug(
    trace: Path, *arguments: str, typed: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracelens", "debug", str(trace), *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


def test_lines_given_as_options_are_run_and_their_answers_printed(trace: Path) -> None:
    done = debug(trace, "--at", "19", "-c", "oi", "-c", "li", "-c", "s")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "op        aten::exp  id 19"
    assert "op 20" in lines[-2]
    assert "\x1b" not in done.stdout


def test_a_script_comes_through_a_pipe_with_comments(trace: Path) -> None:
    done = debug(trace, typed="# to the cause\n]\nwhy\nquit\nstep\n")
    assert done.returncode == 0
    assert "aten::exp" in done.stdout
    assert "train.py:13" in done.stdout
    assert "op 20" not in done.stdout, "quit ends the script"


def test_a_line_that_is_refused_ends_a_script_with_the_code_of_wrong_usage(trace: Path) -> None:
    done = debug(trace, "-c", "stepp", "-c", "oi")
    assert done.returncode == 2
    assert "did you mean 'step'?" in done.stdout
    assert "aten" not in done.stdout


def test_a_script_cannot_open_the_terminal_interface(trace: Path) -> None:
    done = debug(trace, "-c", "tui")
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--at", "nowhere"], 2, "--at: no mark is called 'nowhere'"),
        (["--at", "999"], 2, "--at: no op 999 was recorded"),
        (["--rank", "3"], 2, "no rank 3 in the trace (0)"),
    ],
)
def test_a_start_that_does_not_exist_is_told_in_one_line(
    trace: Path, arguments: list[str], code: int, says: str
) -> None:
    done = debug(trace, *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_path_without_a_trace_is_told_in_one_line(tmp_path: Path) -> None:
    done = debug(tmp_path / "none.tltrace")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1


def test_colour_is_used_when_asked_for_and_never_with_no_color(trace: Path) -> None:
    coloured = debug(trace, "-c", "]", FORCE_COLOR="1", NO_COLOR="")
    assert "\x1b[31mfinding: " in coloured.stdout
    assert "\x1b" not in debug(trace, "-c", "]", FORCE_COLOR="1", NO_COLOR="1").stdout


class Terminal:
    def __init__(self, trace: Path, home: Path) -> None:
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "tracelens", "debug", str(trace)],
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1", "XDG_STATE_HOME": str(home)},
            encoding="utf-8",
            timeout=60,
            dimensions=(40, 160),
        )

    def until_prompt(self) -> str:
        self.process.expect(PROMPT)
        return str(self.process.before)

    def ask(self, line: str) -> str:
        self.process.sendline(line)
        return self.until_prompt()


def test_at_a_terminal_it_greets_completes_remembers_and_leaves_cleanly(
    trace: Path, tmp_path: Path
) -> None:
    terminal = Terminal(trace, tmp_path)
    assert "op 0" in terminal.until_prompt()
    assert "op 1" in terminal.ask("step")
    assert "op 2" in terminal.ask(""), "an empty line repeats"
    terminal.process.send("reverse-f\t")
    terminal.process.expect("reverse-finish ")
    assert "op 0" in terminal.ask("")
    terminal.process.sendintr()
    assert "Traceback" not in terminal.until_prompt()
    assert "op 3" in terminal.ask("goto 3")
    terminal.process.sendeof()
    terminal.process.expect(pexpect.EOF)
    terminal.process.close()
    assert terminal.process.exitstatus == 0
    assert "goto 3" in (tmp_path / "tracelens" / "history").read_text()


def test_an_interrupt_cancels_a_search_and_the_position_stays(tmp_path: Path) -> None:
    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.op()
    trace.close()
    script = (
        "import sys, time\n"
        "from tracelens.storage import search\n"
        "find = search.Search.find\n"
        "def slow(self, *args, **kwargs):\n"
        "    print('searching', flush=True)\n"
        "    time.sleep(60)\n"
        "search.Search.find = slow\n"
        "from tracelens.cli import main\n"
        "sys.exit(main(['debug', sys.argv[1]]))\n"
    )
    terminal = pexpect.spawn(
        sys.executable, ["-c", script, str(trace.path)], encoding="utf-8", timeout=60,
        env={**os.environ, "TERM": "dumb", "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    terminal.expect(PROMPT)
    terminal.sendline("find aten::mm")
    terminal.expect("searching")
    time.sleep(0.2)
    terminal.sendintr()
    terminal.expect(PROMPT)
    assert "cancelled" in terminal.before
    terminal.sendline("quit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
