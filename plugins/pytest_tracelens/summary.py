"""The lines at the end of a run: what was found, and what could not be judged."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_tracelens.watch import FIRST, TRACE, UNJUDGED

_MAX_UNJUDGED = 3


def write(
    reporter: pytest.TerminalReporter, reports: Iterable[pytest.TestReport], *, quiet: bool
) -> None:
    """Write the summary; nothing if nothing was found.

    Args:
        reporter: where to.
        reports: those of tests that have properties of TraceLens.
        quiet: one line for each test.
    """
    known: dict[str, dict[str, str]] = {}
    for report in reports:
        known.setdefault(report.nodeid, {}).update(
            (name, str(value)) for name, value in report.user_properties
        )
    found = {node: told for node, told in known.items() if FIRST in told}
    unjudged = {node: told[UNJUDGED] for node, told in known.items() if UNJUDGED in told}
    if not found and not unjudged:
        return
    reporter.section("non-finite values (tracelens)")
    for node, told in found.items():
        reporter.write_line(f"{node}: {told[FIRST]}")
        if TRACE in told and not quiet:
            reporter.write_line(f"    trace: {told[TRACE]}")
    for number, (node, why) in enumerate(unjudged.items()):
        if number == _MAX_UNJUDGED:
            reporter.write_line(f"and {len(unjudged) - number} further tests were not judged")
            break
        reporter.write_line(f"{node}: not judged: {why}")
