"""``python -m tracelens_tui TRACE``: what the browser's server runs for each visitor."""

from __future__ import annotations

import argparse
import sys

from tracelens.errors import TraceLensError
from tracelens_tui.start import start


def main() -> int:
    """Open the trace named on the command line."""
    parser = argparse.ArgumentParser(prog="tracelens_tui")
    parser.add_argument("trace", nargs="?")
    parser.add_argument("--at", type=int)
    options = parser.parse_args()
    try:
        return start(options.trace, at=options.at)
    except TraceLensError as error:
        print(f"tracelens: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
