"""``tracelens debug``: the prompt on a recorded trace."""

from __future__ import annotations

import argparse
import shutil
import sys

from tracelens.cli._command import Command, add_trace
from tracelens.cli._output import wants_color
from tracelens.errors import EXIT_USAGE


class Debug(Command):
    """Step through a recorded run at a prompt, forwards and backwards.

    `help` lists the commands, `help expressions` what `break` and `find` take. Lines can also come
    from stdin or from -c; then one that is refused ends the run with exit code 2.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace, where to start and what to run."""
        add_trace(parser)
        parser.add_argument("--at", metavar="OP", help="start at: an op id, `step N`, N%%, a mark")
        parser.add_argument("--rank", type=int, metavar="N", help="whose ops (default: the lowest)")
        parser.add_argument(
            "-c",
            "--command",
            action="append",
            metavar="LINE",
            help="run this line and leave; may be repeated",
        )

    def run(self, options: argparse.Namespace) -> int:
        """Hold the conversation."""
        from tracelens.command import Context
        from tracelens.commands import run_line
        from tracelens.cursor import Cursor
        from tracelens.prompt import converse
        from tracelens.storage.reader import open_trace

        with open_trace(options.trace) as reader:
            ranks = reader.ranks()
            rank = options.rank if options.rank is not None else min(ranks, default=0)
            if options.rank is not None and rank not in ranks:
                known = ", ".join(map(str, ranks)) or "none"
                print(f"tracelens debug: no rank {rank} in the trace ({known})", file=sys.stderr)
                return EXIT_USAGE
            width = shutil.get_terminal_size((100, 24)).columns
            context = Context(Cursor(reader, rank), width=max(40, width))
            if options.at is not None:
                answer = run_line(context, f"goto {options.at}")
                if answer.error or (answer.stop is not None and answer.stop.reason == "missing"):
                    print(f"tracelens debug: --at: {answer.lines[0]}", file=sys.stderr)
                    return EXIT_USAGE
            script = options.command
            if script is None and not sys.stdin.isatty():
                script = (line for line in sys.stdin if not line.lstrip().startswith("#"))
            return converse(context, color=wants_color(), script=script)
