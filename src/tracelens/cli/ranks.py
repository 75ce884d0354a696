"""``tracelens ranks``: what only many ranks together tell."""

from __future__ import annotations

import argparse

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json, print_text
from tracelens.engines import add_engine_arguments, open_engine
from tracelens.errors import EXIT_OK


class Ranks(Command):
    """Compare the ranks of a run: who is late, who went wrong first, whose parameters differ.

    Also: each rank's clock, the speed of collectives, step times side by side. Where a trace has
    one rank, only its own part is shown. docs/distributed.md defines every figure.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace, the engine and the output's form."""
        add_trace(parser)
        parser.add_argument(
            "--top", type=int, default=10, metavar="N", help="rows of a list (default: 10)"
        )
        add_engine_arguments(parser)
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the report."""
        from tracelens.analysis.ranks import analyse
        from tracelens.analysis.ranks.text import render

        with open_engine(options.trace, options.engine, master=options.master) as engine:
            report = analyse(engine, top=max(1, options.top))
        if options.json:
            print_json(report.as_json())
        else:
            print_text(render(report))
        return EXIT_OK
