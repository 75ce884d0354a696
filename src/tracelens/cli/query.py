"""``tracelens query``: one SELECT on a trace's tables."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json, print_text, table
from tracelens.engines import add_engine_arguments, open_engine
from tracelens.errors import EXIT_OK


class Query(Command):
    """Run one SELECT on the tables of a trace and print the rows.

    Nothing but the trace can be read and nothing can be written. Tables and views: ops, stats,
    tensors, events, steps, sources, kernels, spans, collectives, ops_aligned, op_full, timeline
    (see docs/format.md; docs/spark.md for --engine spark).
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the query and its limits."""
        add_trace(parser)
        parser.add_argument("sql", metavar="SQL", help="one SELECT; - reads it from stdin")
        parser.add_argument(
            "--limit", type=int, default=1000, help="rows at most (default: %(default)s)"
        )
        parser.add_argument(
            "--timeout", type=float, default=60.0, help="seconds at most (default: %(default)s)"
        )
        add_engine_arguments(parser)
        form = parser.add_mutually_exclusive_group()
        add_json(form)
        form.add_argument("--csv", action="store_true", help="print comma-separated values")

    def parse(
        self, parser: argparse.ArgumentParser, arguments: Sequence[str]
    ) -> argparse.Namespace:
        """Refuse limits that make no sense."""
        options = parser.parse_args(arguments)
        if options.limit < 1 or not options.timeout > 0:
            parser.error("--limit and --timeout must be above 0")
        return options

    def run(self, options: argparse.Namespace) -> int:
        """Print the rows."""
        from tracelens.query import run_query

        sql = sys.stdin.read() if options.sql == "-" else options.sql
        with open_engine(options.trace, options.engine, master=options.master) as engine:
            result = run_query(engine, sql, limit=options.limit, timeout_s=options.timeout)
            for problem in engine.problems:
                print(f"tracelens: {problem}", file=sys.stderr)
        if options.json:
            print_json(
                {
                    "columns": list(result.columns),
                    "rows": [list(row) for row in result.rows],
                    "truncated": result.truncated,
                }
            )
        elif options.csv:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(result.columns)
            writer.writerows(result.rows)
            sys.stdout.flush()
        else:
            print_text(table(result.columns, result.rows))
        if result.truncated and not options.json:
            print(
                f"tracelens: only the first {len(result.rows)} rows; --limit shows more",
                file=sys.stderr,
            )
        return EXIT_OK
