"""Runs programs of the zoo under a real session, many in one process.

``python zoo_runner.py ENGINE OUT_DIR PROGRAM...`` prints one JSON object a program:
``{"program", "why", "exit", "trace"}``. Each program gets what ``tracelens run`` gives it (its own
``__main__``, its folder on ``sys.path``, a session around it), without a new interpreter and
another import of torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from tracelens.cli._program import Program
from tracelens.config import Config
from tracelens.diagnosis import diagnose
from tracelens.session import Session
from tracelens.storage.reader import open_trace


def observe(program: Path, engine: str, trace: Path) -> dict[str, Any]:
    """Run one program under a session; return ``why --json``'s object and how it ended."""
    session = Session(Config(path=trace, engine=engine, quiet=True), opened_by="tracelens run")
    session.open()
    error: BaseException | None = None
    try:
        outcome = Program("script", str(program), ()).run()
        error = outcome.error
    finally:
        session.close(error)
    with open_trace(trace) as reader:
        why = diagnose(reader)
    return {"why": why, "exit": repr(error)[:200] if error else ""}


def main(engine: str, out: Path, programs: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for text in programs:
        program = Path(text)
        name = program.parent.name if program.name == "train.py" else program.stem
        record: dict[str, Any] = {"program": text}
        silent = io.StringIO()
        modules = set(sys.modules)
        try:
            with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                record |= observe(program, engine, out / f"{name}.tltrace")
        except BaseException:
            record["crash"] = traceback.format_exc()[-3000:]
        for module in set(sys.modules) - modules:
            file = getattr(sys.modules[module], "__file__", None) or ""
            if file.startswith(str(program.parent)):
                del sys.modules[module]
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
