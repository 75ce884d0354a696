"""``tracelens summary``: what a trace holds."""

from __future__ import annotations

import argparse
from typing import Any

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import duration, print_json, print_text, table
from tracelens.engines import add_engine_arguments, open_engine
from tracelens.errors import EXIT_OK
from tracelens.texts import printable


class Summary(Command):
    """Show the steps, ops, time by op, module and phase, scalars, findings, ranks of a trace."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace, the length of rankings and the output's form."""
        add_trace(parser)
        parser.add_argument(
            "--top", type=int, default=10, metavar="N", help="rows of a ranking (default: 10)"
        )
        add_engine_arguments(parser)
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the summary."""
        from tracelens.overview import overview

        with open_engine(options.trace, options.engine, master=options.master) as engine:
            found = overview(engine.reader, top=max(1, options.top), engine=engine)
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
    if found["ranks"]:
        lines += _ranks(found["ranks"])
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
            lines += ["", label, *(f"  {printable(_event(row))}" for row in found[label])]
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
    others = ops["recorded"] - ops["profiled"]
    parts = [f"{ops['profiled']} profiled"] if ops["profiled"] else []
    if others or not parts:
        of_all = f" of {steps['n_ops']} that ran" if steps["n_ops"] else ""
        parts.append(f"{others} recorded{of_all}")
    text = ", ".join(parts)
    bad = steps["hits"] or ops["nonfinite"]
    return text + (f", {bad} with a non-finite output" if bad else "")


def _ranks(ranks: dict[str, Any]) -> list[str]:
    """Name the ranks that stand out; ``tracelens ranks`` tells the rest."""
    text = f"ranks   {ranks['count']} of {ranks['world_size']}"
    rows = {row["rank"]: row for row in ranks["rows"]}
    if ranks["missing"]:
        text += f", missing {_some(ranks['missing'])}"
    slow = rows.get(ranks["slowest"])
    if slow is not None and len(rows) > 1:
        spent = slow["own_ns"] or slow["median_duration_ns"]
        text += f", slowest rank {ranks['slowest']} ({duration(round(spent))} a step"
        text += " without its waits)" if slow["own_ns"] else ")"
    late = max(ranks["rows"], key=lambda row: row["caused_ns"] or 0, default=None)
    if late is not None and late["caused_ns"]:
        text += f", waited for most rank {late['rank']} ({duration(late['caused_ns'])} in all)"
    if ranks["first_nonfinite"] is not None:
        text += f", first to go non-finite rank {ranks['first_nonfinite']}"
    off = [row for row in ranks["rows"] if row["clock_offset_ns"]]
    if off:
        worst = max(off, key=lambda row: abs(row["clock_offset_ns"]))
        text += f", clocks up to {duration(abs(worst['clock_offset_ns']))} apart"
    return [f"{text}; see `tracelens ranks`"]


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" ..." if numbers[8:] else "")


def _event(row: dict[str, Any]) -> str:
    times = f" ({row['times']} times)" if row["times"] > 1 else ""
    name = row.get("rule") or row.get("kind")
    return f"{row['severity']}  step {row['step']}  {name}: {row['message']}{times}"
