"""Every error TraceLens raises on purpose: one root, a few leaves, each with its exit code."""

from __future__ import annotations

from typing import Any

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_USAGE = 2
EXIT_UNREADABLE = 3
EXIT_INTERRUPTED = 130


class TraceLensError(Exception):
    """The root. Its message is one line: what happened, where, and what to do.

    Attributes:
        exit_code: what the command line exits with when it meets this error.
    """

    exit_code = EXIT_USAGE


class ConfigError(TraceLensError, ValueError):
    """An argument or environment variable has a value that is not allowed."""


class SessionError(TraceLensError, RuntimeError):
    """A recording cannot be started, or something needs one that is not there."""


class TraceError(TraceLensError):
    """A trace is missing, torn beyond reading, foreign, or of a newer format."""

    exit_code = EXIT_UNREADABLE


class NonFiniteWarning(RuntimeWarning):
    """A NaN or Inf was found while ``nonfinite="warn"``."""


class NonFiniteError(FloatingPointError):
    """A NaN or Inf reached a loss, gradient, parameter or checked value.

    Attributes:
        report: the finding as ``tracelens why --json`` prints it; empty if nothing is known
            beyond the message.
    """

    report: dict[str, Any]

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.report)
