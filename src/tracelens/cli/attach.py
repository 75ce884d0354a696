"""``tracelens attach``: follow a running program."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.cli._command import Command
from tracelens.cli._output import duration, print_text
from tracelens.cli.stacks import add_process, progress_lines, progress_or_why
from tracelens.errors import EXIT_OK, TraceError
from tracelens.texts import printable

if TYPE_CHECKING:
    from tracelens.storage.tail import Tail

_POLL_S = 0.05
_IDLE_NS = 1_000_000_000
"""A program whose last op ended longer ago is told with its stack."""


class Attach(Command):
    """Follow a running program: its steps and findings as they come, and where it stands.

    Ends when the program does. The program is not changed and not slowed, but for the moments in
    which py-spy reads its stacks.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the process and how often to look."""
        add_process(parser)
        parser.add_argument(
            "--interval",
            type=float,
            default=5.0,
            metavar="SECONDS",
            help="between two looks at the stacks (default: %(default)s)",
        )
        parser.add_argument("--once", action="store_true", help="look once and leave")

    def parse(
        self, parser: argparse.ArgumentParser, arguments: Sequence[str]
    ) -> argparse.Namespace:
        """Refuse an interval that makes no sense."""
        options = parser.parse_args(arguments)
        if not 0.1 <= options.interval <= 86_400:
            parser.error("--interval must be from 0.1 to 86400 seconds")
        return options

    def run(self, options: argparse.Namespace) -> int:
        """Follow it."""
        from tracelens.stacks import StacksError, dump, is_running, thread_lines, trace_of

        threads = dump(options.pid)
        tail = _tail(options.trace or trace_of(options.pid))
        try:
            while True:
                progress, problem = progress_or_why(options)
                lines = [f"{time.strftime('%H:%M:%S')}  process {options.pid}"]
                lines += progress_lines(progress, problem)
                idle_ns = progress.idle_ns if progress is not None else None
                if options.once or idle_ns is None or idle_ns > _IDLE_NS:
                    for thread in threads:
                        lines += thread_lines(thread)
                print_text("\n".join(map(printable, lines)))
                if options.once:
                    return EXIT_OK
                _follow(tail, options.interval, options.pid)
                if not is_running(options.pid):
                    print(f"tracelens: process {options.pid} has ended", file=sys.stderr)
                    return EXIT_OK
                try:
                    threads = dump(options.pid)
                except StacksError:
                    # It can end between two looks; whether it did is asked again above.
                    if is_running(options.pid):
                        raise
        finally:
            if tail is not None:
                tail.close()


def _tail(trace: str | Path | None) -> Tail | None:
    from tracelens.storage.tail import Tail

    try:
        return Tail(trace, from_start=False) if trace is not None else None
    except TraceError:
        return None


def _follow(tail: Tail | None, seconds: float, pid: int) -> None:
    """Print what a trace has to tell until it is time to look at the stacks again."""
    from tracelens.stacks import is_running

    until = time.monotonic() + seconds
    while time.monotonic() < until and is_running(pid):
        if tail is not None:
            for event in tail.poll(max_ops=0).events:
                line = _event_line(event)
                if line:
                    print_text(printable(line))
        time.sleep(_POLL_S)


def _event_line(event: dict[str, Any]) -> str:
    kind = event.get("t")
    if kind == "step":
        scalars = event.get("scalars")
        told = "  ".join(f"{name} {value}" for name, value in scalars.items()) if isinstance(
            scalars, dict
        ) else ""  # fmt: skip
        spent = event.get("duration_ns")
        took = duration(spent) if isinstance(spent, int) else "-"
        bad = f"  {event['hits']} non-finite" if event.get("hits") else ""
        return f"  step {event.get('step')}  {took}  {told}{bad}".rstrip()
    if kind in ("finding", "note"):
        return f"  {kind} ({event.get('severity')}): {event.get('message')}"
    return ""
