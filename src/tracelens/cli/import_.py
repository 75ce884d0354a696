"""``tracelens import``: another tool's recording as a trace."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tracelens.cli._command import Command, add_json
from tracelens.cli._output import print_json
from tracelens.cli._progress import progress_bar
from tracelens.errors import EXIT_OK


class Import(Command):
    """Turn another tool's recording into a trace, so that every verb works on it.

    Reads profiles of PyTorch (Kineto's JSON, one file a rank), of TensorFlow and JAX (XPlane), of
    Nsight Systems, py-spy and speedscope, memory snapshots of PyTorch, and tfdbg v2 folders.
    What is damaged is left out and told; the rest is imported.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the recording and the trace."""
        from tracelens.convert.importers import IMPORTERS

        parser.add_argument(
            "recordings",
            metavar="PATH",
            nargs="+",
            help="the other tool's file or folder; several files are the ranks of one run",
        )
        parser.add_argument(
            "-o", "--output", metavar="TRACE", help="default: the first one's name, .tltrace"
        )
        parser.add_argument(
            "--from",
            dest="importer",
            choices=sorted(IMPORTERS),
            help="which tool wrote it (default: told by what it is)",
        )
        parser.add_argument("--force", action="store_true", help="replace an existing trace")
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Write the trace; its path is the output."""
        from tracelens.importing import import_recording

        recordings = [Path(each) for each in options.recordings]
        target = Path(options.output or f"{recordings[0].resolve().name}.tltrace")
        with progress_bar("import") as progress:
            result = import_recording(
                recordings,
                target,
                importer=options.importer,
                force=options.force,
                progress=progress,
            )
        kernels = int(getattr(result, "kernels", 0))
        for problem in result.problems:
            print(f"tracelens: {problem}", file=sys.stderr)
        if options.json:
            print_json(
                {
                    "path": str(target),
                    "ops": result.ops,
                    "kernels": kernels,
                    "steps": result.steps,
                    "findings": result.findings,
                    "problems": list(result.problems),
                }
            )
        else:
            print(target)
            told = f"{result.ops} ops in {result.steps} steps"
            if hasattr(result, "kernels") and not result.findings:
                told += f", {kernels} kernels"
                told += (
                    "" if result.ops or kernels else f", {getattr(result, 'rows', 0)} other rows"
                )
                told += f": tracelens profile {target}"
            else:
                told += f", {result.findings} findings: tracelens why {target}"
            print(f"tracelens: {told}", file=sys.stderr)
        return EXIT_OK
