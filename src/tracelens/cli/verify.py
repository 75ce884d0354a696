"""``tracelens verify``: is every byte of a trace as it was written?"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json, print_text
from tracelens.cli._progress import progress_bar
from tracelens.errors import EXIT_FINDINGS, EXIT_OK


class Verify(Command):
    """Check a trace: every checksum, every manifest, every live file. Nothing is changed.

    Exits with 1 if something is wrong; `tracelens repair` mends what can be mended.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace and the output's form."""
        add_trace(parser)
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print what is wrong."""
        from tracelens.storage.health import BENIGN
        from tracelens.storage.verify import verify

        with progress_bar("verify") as progress:
            problems = verify(options.trace, progress)
        bad = any(problem.kind not in BENIGN for problem in problems)
        if options.json:
            print_json({"ok": not bad, "problems": [asdict(problem) for problem in problems]})
        else:
            print_text(told(problems) or "sound: nothing is missing and nothing has changed")
        return EXIT_FINDINGS if bad else EXIT_OK


def told(problems: Iterable[object]) -> str:
    """Return problems as lines."""
    return "\n".join(str(problem) for problem in problems)
