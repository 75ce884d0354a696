"""``tracelens report``: a trace as one page for the browser."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json
from tracelens.errors import EXIT_OK


class Report(Command):
    """Write a trace as one HTML page: findings, curves, gradient flow, top ops and kernels.

    The page opens offline, in any browser, on a phone too: it has no script and loads nothing.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace, the file and what to draw."""
        add_trace(parser)
        parser.add_argument(
            "-o", "--output", metavar="FILE", help="default: the trace's name, .html"
        )
        parser.add_argument(
            "--rank", type=int, metavar="N", help="draw this rank only (default: all together)"
        )
        parser.add_argument("--force", action="store_true", help="replace an existing file")
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Write the page; its path is the output."""
        from tracelens.plots.page import write_page
        from tracelens.storage.reader import open_trace

        with open_trace(options.trace) as reader:
            name = reader.path.name.removesuffix(".tltrace") + ".html"
            target = Path(options.output or name)
            told = write_page(reader, target, rank=options.rank, force=options.force)
        if options.json:
            print_json(told)
        else:
            print(told["path"])
            count = len(told["charts"])
            drawn = f"{count} chart{'s' if count != 1 else ''}, verdict {told['verdict']}"
            print(f"tracelens: {drawn}: open it in a browser", file=sys.stderr)
        return EXIT_OK
