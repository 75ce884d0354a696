"""``tracelens stacks``: where a running program is."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.cli._command import Command, add_json
from tracelens.cli._output import duration, print_json, print_text
from tracelens.errors import EXIT_OK, TraceError
from tracelens.texts import printable

if TYPE_CHECKING:
    from tracelens.stacks import Progress


class Stacks(Command):
    """Show the Python stacks of a running program, and the step and op it has come to.

    For a training that hangs or crawls: nothing in it has to be prepared, and it goes on. Its
    trace is found among its open files. Needs py-spy and the right to read the process.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the process and how much to show."""
        add_process(parser)
        parser.add_argument("--all", action="store_true", help="frames of frameworks too")
        parser.add_argument(
            "--subprocesses", action="store_true", help="also the processes that it started"
        )
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the stacks."""
        from tracelens.stacks import dump, thread_lines

        threads = dump(options.pid, subprocesses=options.subprocesses)
        progress, problem = progress_or_why(options)
        if options.json:
            print_json(
                {
                    "pid": options.pid,
                    "progress": None if progress is None else progress_json(progress),
                    "problem": problem,
                    "threads": [asdict(thread) for thread in threads],
                }
            )
            return EXIT_OK
        lines = [f"process {options.pid}", *progress_lines(progress, problem)]
        for thread in threads:
            lines += ["", *thread_lines(thread, everything=options.all)]
        print_text("\n".join(map(printable, lines)))
        return EXIT_OK


def add_process(parser: argparse.ArgumentParser) -> None:
    """Declare the process and its trace."""
    parser.add_argument("pid", metavar="PID", type=int, help="the process")
    parser.add_argument(
        "--trace", metavar="TRACE", help="its trace (default: found among its open files)"
    )


def progress_or_why(options: argparse.Namespace) -> tuple[Progress | None, str]:
    """Return how far the trace of a process has come, or why that is not known.

    Raises:
        TraceError: the trace that was named cannot be read.
    """
    from tracelens.stacks import progress_of, trace_of

    path = Path(options.trace) if options.trace else trace_of(options.pid)
    if path is None:
        if not Path("/proc/self/fd").is_dir():
            return None, "its trace cannot be found here: give --trace"
        return None, "it writes no trace (`tracelens run` and tl.trace make it write one)"
    try:
        return progress_of(path, options.pid), ""
    except TraceError as error:
        if options.trace:
            raise
        return None, str(error)


def progress_lines(progress: Progress | None, problem: str) -> list[str]:
    """Return how far a trace has come, for a person."""
    from tracelens.optext import op_line

    if progress is None:
        return [problem]
    lines = [f"trace {progress.trace}, rank {progress.rank}"]
    if progress.last_op is None:
        return [*lines, "no op is recorded yet"]
    ago = "" if progress.idle_ns is None else f", {duration(progress.idle_ns)} ago"
    return [*lines, f"last op that ended{ago}:", f"  {op_line(progress.last_op)}"]


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return how far a trace has come, as JSON."""
    op = progress.last_op
    return {
        "trace": str(progress.trace),
        "rank": progress.rank,
        "step": progress.step,
        "ops": progress.ops,
        "idle_ns": progress.idle_ns,
        "last_op": None
        if op is None
        else {
            "op_id": op.op_id,
            "op": op.name,
            "phase": op.phase.label,
            "module": op.module or None,
            "file": op.source.file if op.source else None,
            "line": op.source.line if op.source else None,
        },
    }
