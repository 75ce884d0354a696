"""``tracelens summary``: what a trace holds."""

from __future__ import annotations

import argparse
from typing import Any

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import duration, print_json, print_text, table
from tracelens.errors import EXIT_OK


class Summary(Command):
    """Show the steps, ops, time by op, module and phase, scalars and findings of a trace."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace, the length of rankings and the output's form."""
        add_trace(parser)
        parser.add_argument(
            "--top", type=int, default=10, metavar="N", help="rows of a ranking (default: 10)"
        )
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the summary."""
        from tracelens.overview import overview
        from tracelens.storage.reader import open_trace

        with open_trace(options.trace) as reader:
            found = overview(reader, top=max(1, options.top))
        if options.json:
            print_json(found)
        else:
            print_text(_render(found))
        return EXIT_OK


def _render(found: dict[str, Any]) -> str:
    trace, steps, ops = found["trace"], found["steps"], found["ops"]
    shards = "1 process" if trace["shards"] == 1 else f"{trace['shards']} processes"
    lines = [
        f"{trace['path']}  format {trace['version']}  {shards}  {', '.join(trace['states'])}",
        *(f"problem: {problem}" for problem in trace["problems"]),
        f"steps   {_steps(steps)}",
        f"ops     {_ops(steps, ops)}",
    ]
    for label, rows in found["time"].items():
        if rows:
            body = [
                [row["name"] or "(none)", row["count"], duration(row["duration_ns"]),
                 f"{100 * row['share']:.1f}%"]
                for row in rows
            ]  # fmt: skip
            lines += ["", table([f"time by {label}", "ops", "time", "share"], body)]
    if found["scalars"]:
        rows = [
            [name, s["count"], s["first"], s["last"], s["min"], s["max"]]
            for name, s in found["scalars"].items()
        ]
        lines += ["", table(["scalar", "steps", "first", "last", "min", "max"], rows)]
    for label in ("findings", "notes"):
        if found[label]:
            lines += ["", label, *(f"  {_event(row)}" for row in found[label])]
    return "\n".join(lines)


def _steps(steps: dict[str, Any]) -> str:
    if not steps["count"]:
        return "none marked"
    text = f"{steps['count']} ({steps['first']} to {steps['last']})"
    if steps["median_duration_ns"] is not None:
        text += (
            f", median {duration(steps['median_duration_ns'])}, "
            f"slowest {duration(steps['max_duration_ns'])} (step {steps['slowest']})"
        )
    return text


def _ops(steps: dict[str, Any], ops: dict[str, Any]) -> str:
    text = f"{ops['recorded']} recorded"
    if steps["n_ops"]:
        text += f" of {steps['n_ops']} that ran"
    bad = steps["hits"] or ops["nonfinite"]
    return text + (f", {bad} with a non-finite output" if bad else "")


def _event(row: dict[str, Any]) -> str:
    times = f" ({row['times']} times)" if row["times"] > 1 else ""
    name = row.get("rule") or row.get("kind")
    return f"{row['severity']}  step {row['step']}  {name}: {row['message']}{times}"
