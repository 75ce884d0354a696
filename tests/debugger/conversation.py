"""Talking with a program that stops at a debugger's prompt, through a real terminal."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pexpect

PROMPT = r"\((?:Pdb(?:\+\+)?|tracelens)\) "
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Conversation:
    """A Python program in a terminal of 160 columns, without colour.

    Args:
        arguments: what follows ``python``.
        directory: its working directory.
        **environment: variables to set.
    """

    def __init__(self, arguments: list[str], directory: Path, **environment: str) -> None:
        settings = {
            "TERM": "dumb",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        home = {"XDG_STATE_HOME": str(directory / "state")}
        self.process = pexpect.spawn(
            sys.executable,
            arguments,
            cwd=str(directory),
            env={**os.environ, **settings, **home, **environment},
            encoding="utf-8",
            timeout=120,
            dimensions=(60, 160),
        )

    def reach_prompt(self) -> str:
        """Return what the program says up to its next prompt."""
        self.process.expect(PROMPT)
        return _plain(self.process.before)

    def ask(self, line: str) -> str:
        """Type a line at the prompt; return the answer, up to the next prompt."""
        self.process.sendline(line)
        return self.reach_prompt().partition("\n")[2]

    def leave(self, line: str | None = None) -> tuple[str, int | None]:
        """Type a last line; return what the program still says, and its exit status."""
        if line is not None:
            self.process.sendline(line)
        self.process.expect(pexpect.EOF)
        said = _plain(self.process.before)
        self.process.close()
        return said, self.process.exitstatus


def _plain(text: str) -> str:
    return _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "")
