"""Runs a real pytest over tests written for the purpose, and reads what it reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ALWAYS = ("-q", "-p", "no:cacheprovider", "--junitxml=report.xml")
SECONDS = 300
SERVER = Path(__file__).with_name("inner_server.py")


@dataclass
class Told:
    """What one inner test came to.

    Attributes:
        outcome: ``passed``, ``failed``, ``error`` or ``skipped``.
        message: of its failure.
        properties: junit properties.
        times: how often it was reported.
    """

    outcome: str
    message: str = ""
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The finding in one sentence, empty if there is none."""
        return self.properties.get("tracelens.first_nonfinite", "")


@dataclass
class Run:
    """What an inner pytest reported.

    Attributes:
        status: its exit status.
        text: stdout and stderr.
        tests: what became of each test, by name.
    """

    status: int
    text: str
    tests: dict[str, Told]

    def outcomes(self) -> dict[str, str]:
        """Return the outcome of each test."""
        return {name: told.outcome for name, told in self.tests.items()}


class Server:
    """Runs pytest in forks of a process that has PyTorch imported, which saves its seconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, directory: Path, *arguments: str, **environment: str) -> Run:
        """Run pytest in a directory."""
        asked = {"directory": str(directory), "arguments": [*ALWAYS, *arguments]}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({**asked, "environment": environment}) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        text = (directory / "said.txt").read_text(encoding="utf-8")
        return Run(status, text, read_report(directory / "report.xml"))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(SECONDS)


class Directory:
    """A project with tests, in a directory of its own.

    Args:
        path: the directory.
        server: runs pytest in it.
    """

    def __init__(self, path: Path, server: Server) -> None:
        self.path = path
        self._server = server
        self.write("pytest.ini", "[pytest]\nasyncio_default_fixture_loop_scope = function\n")

    def write(self, name: str, text: str) -> None:
        """Write a file; what all its lines are indented by is left out."""
        (self.path / name).write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")

    def run(self, source: str, *arguments: str, **environment: str) -> Run:
        """Run the tests of a source text."""
        self.write("test_user.py", source)
        return self._server.run(self.path, *arguments, **environment)


def in_subprocess(directory: Path, *arguments: str | Path, **environment: str) -> Run:
    """Run tests in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *ALWAYS, *map(str, arguments)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
    )
    return Run(done.returncode, done.stdout + done.stderr, read_report(directory / "report.xml"))


def read_report(path: Path) -> dict[str, Told]:
    """Return what a junit report says of each test."""
    found: dict[str, Told] = {}
    if not path.exists():
        return found
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        told = Told("passed")
        for tag, outcome in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
            element = case.find(tag)
            if element is not None and told.outcome == "passed":
                told.outcome, told.message = outcome, element.get("message") or ""
        for item in case.iter("property"):
            told.properties[str(item.get("name"))] = str(item.get("value"))
        found[str(case.get("name"))] = told
    return found
