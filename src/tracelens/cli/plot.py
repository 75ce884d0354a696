"""``tracelens plot``: charts of a trace as a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json
from tracelens.errors import EXIT_OK


class Plot(Command):
    """Draw a trace's loss, step times, gradient flow, non-finite map, top ops into a PNG or SVG.

    What the trace lacks is told. Needs matplotlib: pip install 'tracelens-toolkit[plots]'.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace, the charts and the file."""
        from tracelens.plots.charts import KEYS

        add_trace(parser)
        parser.add_argument(
            "--what",
            metavar="CHARTS",
            help=f"comma-separated, of {', '.join(KEYS)} (default: all that the trace has)",
        )
        parser.add_argument(
            "-o",
            "--output",
            metavar="FILE",
            help="ends with .png, .svg or .pdf (default: the trace's name, .png)",
        )
        parser.add_argument(
            "--rank", type=int, metavar="N", help="draw this rank only (default: all together)"
        )
        parser.add_argument("--force", action="store_true", help="replace an existing file")
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Draw the picture; its path is the output."""
        from tracelens.plots.charts import charts_of, check_keys
        from tracelens.plots.figure import write_picture
        from tracelens.storage.reader import open_trace

        keys = check_keys(options.what)
        with open_trace(options.trace) as reader:
            name = reader.path.name.removesuffix(".tltrace")
            target = Path(options.output or f"{name}.png")
            charts = charts_of(reader, keys, rank=options.rank)
            wanted = charts if options.what else [c for c in charts if not c.missing]
            write_picture(wanted, target, title=name, force=options.force)
        missing = {chart.key: chart.missing for chart in charts if chart.missing}
        if options.json:
            drawn = [chart.key for chart in charts if not chart.missing]
            print_json({"path": str(target), "charts": drawn, "missing": missing})
        else:
            print(target)
        for key, reason in missing.items():
            print(f"tracelens: no {key}: {reason}", file=sys.stderr)
        return EXIT_OK
