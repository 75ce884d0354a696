"""``tracelens export``: a trace in another tool's format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json
from tracelens.cli._steps import step_range
from tracelens.errors import EXIT_OK

_ENDINGS = {
    "csv": ".csv",
    "npz": ".npz",
    "parquet": "-tables",
    "perfetto": ".json",
    "perfetto-proto": ".pftrace",
    "speedscope": ".speedscope.json",
    "tensorboard": "",
    "tensorboard-profile": "",
}
_LOGDIR = "logs"
_FOLDERS = {
    "tensorboard": _LOGDIR,
    "tensorboard-profile": _LOGDIR,
}
_MODULES = {"speedscope": "speedscope_out"}
"""Modules of `tracelens.convert` that have another name than their format."""
_UNITS = {
    "csv": "rows",
    "npz": "arrays",
    "parquet": "rows",
    "perfetto": "ops",
    "perfetto-proto": "ops",
    "speedscope": "profiles",
    "tensorboard": "summaries",
    "tensorboard-profile": "events",
}


class Export(Command):
    """Write a trace for another tool.

    csv writes one table, npz NumPy arrays, parquet a folder of all tables (or one, with --table).
    Open perfetto (JSON) and perfetto-proto (smaller) in ui.perfetto.dev, speedscope in
    speedscope.app. For tensorboard and tensorboard-profile (the tab of torch-tb-profiler) the
    output is a log folder, in which the trace becomes one run: tensorboard --logdir FOLDER.
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
        parser.add_argument(
            "--table", help="csv, parquet: which table (default: ops; parquet: all)"
        )
        parser.add_argument("--rank", type=int, metavar="N", help="parquet: only this rank")
        parser.add_argument("--steps", metavar="A:B", help="only steps A <= step < B")
        parser.add_argument("--force", action="store_true", help="replace an existing file")
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Write the file; its path is the output."""
        from tracelens.storage.reader import open_trace

        first, end = step_range(options.steps)
        name = Path(options.trace).name.removesuffix(".tltrace") + _ENDINGS[options.format]
        target = Path(options.output or _FOLDERS.get(options.format, name))
        module = _MODULES.get(options.format, options.format.replace("-", "_"))
        export: Callable[..., int] = import_module(f"tracelens.convert.{module}").export
        chosen: dict[str, Any] = {}
        if options.format == "csv":
            chosen = {"table": options.table or "ops"}
        elif options.format == "parquet":
            chosen = {"table": options.table, "rank": options.rank}
            if options.table and not options.output:
                stem = target.name.removesuffix(_ENDINGS["parquet"])
                target = target.with_name(f"{stem}-{options.table}.parquet")
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
