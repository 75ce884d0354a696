"""``tracelens repair``: seal what a killed program left behind."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json, print_text
from tracelens.errors import EXIT_OK


class Repair(Command):
    """Seal the records that a killed program left in its rings, and set damaged files aside.

    Nothing that was recorded is deleted, and a shard whose program still runs is left alone.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace and the output's form."""
        add_trace(parser)
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Repair the trace and print what was done."""
        from tracelens.storage.recovery import repair

        done = repair(options.trace)
        if options.json:
            print_json(asdict(done))
        else:
            print_text(str(done))
        return EXIT_OK
