"""``python -m tracelens``: the same command line as ``tracelens``."""

from __future__ import annotations

import sys

from tracelens.cli import main

if __name__ == "__main__":
    sys.exit(main())
