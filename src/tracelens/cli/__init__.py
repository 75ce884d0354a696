"""The command line. One module per verb; a verb's docstring is its help.

Data goes to stdout, narration to stderr. Exit codes: 0 fine, 1 something was found, 2 wrong
usage, 3 unreadable trace, 130 interrupted; ``tracelens run`` exits as the program it ran.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword

from tracelens import __version__
from tracelens.cli._command import Command
from tracelens.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNREADABLE,
    EXIT_USAGE,
    TraceLensError,
)

VERBS = (
    "run",
    "why",
    "view",
    "debug",
    "summary",
    "profile",
    "report",
    "plot",
    "query",
    "ranks",
    "verify",
    "repair",
    "export",
    "import",
    "stacks",
    "attach",
    "doctor",
)

_DESCRIPTION = "Find the first cause of a NaN or Inf, and see what every op of a program did."
_EPILOG = """\
examples:
  tracelens run train.py --epochs 3     record a program, changing nothing in it
  tracelens why train-*.tltrace         the first cause of its first NaN or Inf

exit codes: 0 fine, 1 something was found, 2 wrong usage, 3 unreadable trace, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Args:
        arguments: what follows ``tracelens``; ``sys.argv[1:]`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((word for word in words if not word.startswith("-")), None)
    try:
        command = _load(verb) if verb in VERBS and words[0] == verb else None
        if command is not None:
            parser = command.parser()
            return command.run(command.parse(parser, words[1:]))
        _overview().parse_args(words)
        _overview().print_help()
        return EXIT_USAGE
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else EXIT_USAGE
    except TraceLensError as error:
        print(f"tracelens {verb}: {_printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print(f"tracelens {verb}: there is not enough memory for this", file=sys.stderr)
        return EXIT_UNREADABLE
    except KeyboardInterrupt:
        print("tracelens: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell. Python would
        # complain once more when it flushes stdout at exit, so stdout goes nowhere from here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _load(verb: str) -> Command:
    module = import_module(f"tracelens.cli.{verb}_" if iskeyword(verb) else f"tracelens.cli.{verb}")
    command: Command = getattr(module, verb.capitalize())()
    return command


def _printable(message: str) -> str:
    """Escape control characters, which a file or its name may have brought into a message."""
    from tracelens.texts import printable

    return printable(message)


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tracelens",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tracelens {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    for verb in VERBS:
        verbs.add_parser(verb, help=_load(verb).summary(), add_help=False)
    return parser
