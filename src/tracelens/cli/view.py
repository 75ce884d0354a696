"""``tracelens view``: look at a trace in the terminal, or in a browser."""

from __future__ import annotations

import argparse
import sys

from tracelens.cli._command import Command
from tracelens.errors import TraceLensError
from tracelens.faces import load_face


class View(Command):
    """Open a trace in the terminal and step through it.

    Without a trace the runs of a directory are listed. A trace that is still being written is
    followed. `?` shows the keys. With --serve the same is shown in a browser.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace and where to start."""
        parser.add_argument(
            "trace", metavar="TRACE", nargs="?", help="a directory NAME.tltrace, or one of runs"
        )
        parser.add_argument("--at", metavar="OP", type=int, help="the id of the op to start at")
        parser.add_argument(
            "--serve",
            metavar="HOST:PORT",
            nargs="?",
            const="127.0.0.1:8000",
            help="show it in a browser (default address: %(const)s); the URL holds a token",
        )

    def run(self, options: argparse.Namespace) -> int:
        """Open the face."""
        if options.serve is None and not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ViewError("it needs a terminal; `tracelens summary` and `why` write to a pipe")
        return load_face("tui")(options.trace, at=options.at, serve=options.serve)


class ViewError(TraceLensError):
    """The face cannot be shown here."""
