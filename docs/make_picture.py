"""Draw ``docs/report.svg``: the report that ``tracelens why`` prints on the demonstration.

Runs ``examples/digits_nan.py``, so the picture is what the program says today.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 104


def main() -> None:
    """Record the demonstration and draw its report."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, ROOT / "examples" / "digits_nan.py"], cwd=folder, check=True
        )
        (trace,) = Path(folder).glob("demo-out/*.tltrace")
        report = draw(trace)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ tracelens why digits.tltrace", style="bold"))
    console.print(Text.from_ansi(report))
    svg = console.export_svg(title="tracelens", theme=MONOKAI, unique_id="report")
    # A picture loads nothing: without the fonts of the web, the reader's monospace one is used.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (ROOT / "docs" / "report.svg").write_text(svg)


def draw(trace: Path) -> str:
    """Return the coloured report, with the paths of this machine left out."""
    done = subprocess.run(
        [sys.executable, "-m", "tracelens", "why", trace],
        capture_output=True,
        text=True,
        env={"FORCE_COLOR": "1", "COLUMNS": str(WIDTH)},
        check=False,
    )
    if done.returncode != 1:
        raise SystemExit(f"the demonstration found nothing: {done.stderr}")
    return done.stdout.replace(f"{ROOT}/", "")


if __name__ == "__main__":
    main()
