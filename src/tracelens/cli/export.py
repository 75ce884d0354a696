"""``tracelens export``: a trace in another tool's format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json
from tracelens.cli._steps import step_range
from tracelens.errors import EXIT_OK

_ENDINGS = {"csv": ".csv", "npz": ".npz", "perfetto": ".json", "tensorboard": ""}
_LOGDIR = "logs"
_UNITS = {"csv": "rows", "npz": "arrays", "perfetto": "ops", "tensorboard": "summaries"}


class Export(Command):
    """Write a trace for another tool: csv (one table), npz (NumPy arrays), perfetto, tensorboard.

    Open a perfetto file in ui.perfetto.dev or chrome://tracing. For tensorboard the output is a log
    folder, in which the trace becomes one run: tensorboard --logdir FOLDER.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the format, the file, and what to leave out."""
        add_trace(parser)
        parser.add_argument("--format", required=True, choices=sorted(_ENDINGS))
        parser.add_argument(
            "-o",
            "--output",
            metavar="FILE",
            help="default: the trace's name, ending changed; for tensorboard: logs",
        )
        parser.add_argument("--table", default="ops", help="csv: which table (default: ops)")
        parser.add_argument("--steps", metavar="A:B", help="only steps A <= step < B")
        parser.add_argument("--force", action="store_true", help="replace an existing file")
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Write the file; its path is the output."""
        from tracelens.storage.reader import open_trace

        first, end = step_range(options.steps)
        name = Path(options.trace).name.removesuffix(".tltrace") + _ENDINGS[options.format]
        if options.format == "tensorboard":
            name = _LOGDIR
        target = Path(options.output or name)
        export: Callable[..., int] = import_module(f"tracelens.convert.{options.format}").export
        chosen = {"table": options.table} if options.format == "csv" else {}
        with open_trace(options.trace) as reader:
            if options.format == "tensorboard":
                from tracelens.analysis.report import render
                from tracelens.diagnosis import diagnose

                chosen = {"verdict": render(diagnose(reader))}
            count = export(
                reader,
                target,
                first_step=first,
                last_step=None if end is None else end - 1,
                force=options.force,
                **chosen,
            )
        unit = _UNITS[options.format]
        if options.json:
            print_json({"path": str(target), "format": options.format, unit: count})
        else:
            print(target)
            print(f"tracelens: {count} {unit} written", file=sys.stderr)
        return EXIT_OK
