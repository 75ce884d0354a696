"""``tracelens run``: record a program without changing it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tracelens.cli._command import Command
from tracelens.cli._program import Outcome, Program, split
from tracelens.cli._steps import step_range
from tracelens.config import CAPTURES, ENGINES, NONFINITES, Config, enabled
from tracelens.errors import NonFiniteError
from tracelens.schedules import Schedule, steps_between
from tracelens.session import Session
from tracelens.tracepaths import default_path

_WITH_VALUE = frozenset({"-o", "--output", "--capture", "--nonfinite", "--engine", "--steps"})


class Run(Command):
    """Run a Python program and record what its tensors do.

    The program runs as under `python`: the same arguments, output, exceptions and exit code.
    At the end one message on stderr says where the trace is and, if a NaN or Inf was found,
    where it first appeared.
    """

    usage = "tracelens run [options] (SCRIPT | -m MODULE | -c CODE) [ARGUMENTS ...]"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options that come before the program."""
        parser.add_argument("-o", "--output", metavar="TRACE", help="where to write the trace")
        parser.add_argument(
            "--capture",
            choices=CAPTURES,
            default="guard",
            help="how much to keep: what led to a finding, every op, or values too "
            "(default: %(default)s)",
        )
        parser.add_argument(
            "--nonfinite",
            choices=NONFINITES,
            default="record",
            help="what to do on a NaN or Inf (default: %(default)s)",
        )
        parser.add_argument("--engine", choices=ENGINES, help="default: the best that works here")
        parser.add_argument(
            "--steps", metavar="A:B", help="record op by op only steps A <= step < B"
        )
        parser.add_argument(
            "--live",
            action="store_true",
            help="show the run while it goes on, in the terminal; its output goes to a file",
        )
        parser.add_argument(
            "--profile",
            action="store_true",
            help="keep ops, kernels, copies and memory, from the framework's own profiler",
        )
        parser.add_argument(
            "--sample",
            action="store_true",
            help="keep what the host's Python does, 100 times a second (py-spy)",
        )
        parser.add_argument("-q", "--quiet", action="store_true", help="say nothing at the end")

    def parse(
        self, parser: argparse.ArgumentParser, arguments: Sequence[str]
    ) -> argparse.Namespace:
        """Parse our options only: what follows the program belongs to it."""
        own, program = split(arguments, _WITH_VALUE)
        options = parser.parse_args(own)
        if program is None:
            parser.error("name a script, -m module or -c code to run")
        options.program = program
        return options

    def run(self, options: argparse.Namespace) -> int:
        """Run the program; its exit code is ours."""
        program: Program = options.program
        program.check()
        if options.live:
            return self._watch(options)
        if not enabled():
            return program.run().exit_code
        session = Session(
            Config(
                path=Path(options.output) if options.output else default_path(program.label),
                capture=options.capture,
                nonfinite=options.nonfinite,
                schedule=_schedule(options.steps),
                engine=options.engine,
                profile=options.profile,
                sample=options.sample,
                quiet=options.quiet,
            ),
            opened_by="tracelens run",
        )
        session.open()
        pid = os.getpid()
        outcome = Outcome(1)
        try:
            outcome = program.run()
        finally:
            if os.getpid() == pid:
                outcome = self._finish(session, outcome, quiet=options.quiet)
        return outcome.exit_code

    def _watch(self, options: argparse.Namespace) -> int:
        """Run the program in a process of its own, under a face that follows it."""
        from tracelens.faces import FaceError, load_face

        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise FaceError("--live needs a terminal")
        program: Program = options.program
        path = Path(options.output) if options.output else default_path(program.label)
        words = ["run", "-q", "-o", str(path), "--capture", options.capture]
        words += ["--nonfinite", options.nonfinite]
        for name in ("engine", "steps"):
            if getattr(options, name) is not None:
                words += [f"--{name}", str(getattr(options, name))]
        words += ["--profile"] * options.profile + ["--sample"] * options.sample
        words += {"script": ["--"], "module": ["-m"], "code": ["-c"]}[program.kind]
        words += [program.target, *program.arguments]
        return load_face("tui")(str(path), program=[sys.executable, "-m", "tracelens", *words])

    def _finish(self, session: Session, outcome: Outcome, *, quiet: bool) -> Outcome:
        try:
            session.close(outcome.error)
        except NonFiniteError as error:
            print(f"{type(error).__module__}.{type(error).__name__}: {error}", file=sys.stderr)
            outcome = Outcome(1, error)
        if not quiet:
            session.announce(always=True)
        return outcome


def _schedule(steps: str | None) -> Schedule | None:
    if steps is None:
        return None
    first, end = step_range(steps)
    return steps_between(first or 0, sys.maxsize if end is None else end)
