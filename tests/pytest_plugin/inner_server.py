"""Runs pytest again and again, each time in a fork of a process that has PyTorch imported.

Reads lines ``{"directory", "arguments", "environment"}``, answers each with the exit status. What
pytest says goes to ``said.txt`` in the directory.
"""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

import tracelens.analysis.survivors
import tracelens.storage.sealer
import tracelens_torch.backend
from tracelens_torch.native import build


def run(directory: str, arguments: list[str], environment: dict[str, str]) -> int:
    """Be pytest in a directory; return its exit status."""
    os.chdir(directory)
    os.environ.update(environment)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    return int(pytest.main(arguments))


def main() -> None:
    assert tracelens_torch.backend and tracelens.storage.sealer and tracelens.analysis.survivors
    torch.set_num_threads(1)
    if build.built():
        build.load()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 70
            try:
                status = run(**json.loads(line))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(ended)}\n".encode())


if __name__ == "__main__":
    main()
