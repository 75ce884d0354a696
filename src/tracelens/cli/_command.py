"""What every verb is: a class whose docstring is its help."""

from __future__ import annotations

import argparse
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence


class Command(ABC):
    """One verb of the command line."""

    usage: str | None = None
    """The usage line where argparse cannot derive it."""

    def parser(self) -> argparse.ArgumentParser:
        """Return the verb's argument parser."""
        parser = argparse.ArgumentParser(
            prog=f"tracelens {type(self).__name__.lower()}",
            usage=self.usage,
            description=inspect.getdoc(type(self)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_arguments(parser)
        return parser

    def parse(
        self, parser: argparse.ArgumentParser, arguments: Sequence[str]
    ) -> argparse.Namespace:
        """Turn the words after the verb into options; exits with code 2 on wrong usage."""
        return parser.parse_args(arguments)

    def summary(self) -> str:
        """Return the first sentence of the help."""
        return (inspect.getdoc(type(self)) or "").partition("\n\n")[0].replace("\n", " ")

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    @abstractmethod
    def run(self, options: argparse.Namespace) -> int:
        """Do it and return the exit code."""


def add_trace(parser: argparse.ArgumentParser) -> None:
    """Declare the positional argument ``trace``."""
    parser.add_argument("trace", metavar="TRACE", help="the directory NAME.tltrace")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
