"""``tracelens why``: the first cause of a non-finite value."""

from __future__ import annotations

import argparse

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json, print_text, wants_color
from tracelens.errors import EXIT_FINDINGS, EXIT_OK


class Why(Command):
    """Tell where the first NaN or Inf of a recorded run came from, why, and how to fix it.

    Exits with 1 if a non-finite value reached a loss, gradient, parameter or checked value, and
    with 0 if none did (also if one appeared and was masked), so that it can guard a CI job.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace and the output's form."""
        add_trace(parser)
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the report."""
        from tracelens.analysis.report import render
        from tracelens.diagnosis import diagnose
        from tracelens.storage.reader import open_trace

        with open_trace(options.trace) as reader:
            why = diagnose(reader)
        if options.json:
            print_json(why)
        else:
            color = wants_color()
            print_text(render(why, color=color), styled=color)
        return EXIT_FINDINGS if why["verdict"] == "non-finite" else EXIT_OK
