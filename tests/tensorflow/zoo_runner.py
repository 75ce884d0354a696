"""Runs TensorFlow programs of the zoo under a real session, many in one process.

``python zoo_runner.py OUT_DIR PROGRAM...`` prints one JSON object a program:
``{"program", "why", "exit", "failed"}``, or ``"crash"`` with a traceback. Each program gets what
``tracelens run`` gives it, without a new interpreter and another import of TensorFlow.
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

import tensorflow as tf

from tracelens.cli._program import Program
from tracelens.config import Config
from tracelens.diagnosis import diagnose
from tracelens.session import Session
from tracelens.storage.reader import open_trace


def observe(program: Path, trace: Path) -> dict[str, Any]:
    """Run one program under a session; return ``why --json``'s object and how it ended."""
    session = Session(Config(path=trace, quiet=True), opened_by="tracelens run")
    session.open()
    error: BaseException | None = None
    try:
        error = Program("script", str(program), ()).run().error
    finally:
        session.close(error)
    with open_trace(trace) as reader:
        why = diagnose(reader)
        notes = [event for event in reader.events("note") if event.get("kind") == "hook_failed"]
    failed = [str(note.get("message")) for note in notes]
    return {"why": why, "exit": repr(error)[:200] if error else "", "failed": failed}


def tidy() -> None:
    """Undo what a program set for its whole process."""
    tf.keras.backend.clear_session()
    tf.keras.mixed_precision.set_global_policy("float32")


def main(out: Path, programs: list[str]) -> None:
    warnings.simplefilter("ignore")
    for text in programs:
        program = Path(text)
        record: dict[str, Any] = {"program": text}
        silent = io.StringIO()
        try:
            with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                record |= observe(program, out / f"{program.stem}.tltrace")
        except BaseException:
            record["crash"] = traceback.format_exc()[-3000:]
        print(json.dumps(record), flush=True)
        tidy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
