"""Runs the code blocks of a page of the documentation, in order, in the directory it is given.

``python page.py PAGE.md`` runs what a reader would: Python blocks share one namespace, console
blocks run the lines that begin with ``$``, and a block with ``title="train.py"`` is written to that
file. A command must exit with 0, or as its line says (``# exits with 1``).

Two comments, which a reader of the built page does not see, help:

- ``<!-- not run: the reason -->`` before a block leaves it out;
- ``<!-- setup`` and lines of Python, up to ``-->``, run where they stand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_PART = re.compile(
    r"^(?:<!-- setup\n(?P<setup>.*?)^-->$"
    r"|(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"(?P<indent>[ ]*)```(?P<language>[\w-]*)(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$)",
    re.MULTILINE | re.DOTALL,
)
_EXIT = re.compile(r"#.*\bexits with (\d+)")
_RUNNABLE = ("python", "pycon", "console")
_SECONDS = 240


def main(page: Path) -> int:
    """Run a page; the first block that fails ends it."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__page__"}
    ran = 0
    for found in _PART.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["setup"] is not None:
            _python(found["setup"], f"setup_{line}.py", namespace)
        elif found["language"] in _RUNNABLE and not found["reason"]:
            body = _dedented(found["body"], found["indent"])
            title = re.search(r'title="([^"]+)"', found["info"])
            where = f"{page.name}:{line}"
            print(f"== {where}", flush=True)
            if title:
                Path(title[1]).write_text(body, encoding="utf-8")
            elif found["language"] == "console":
                _console(body, where)
            else:
                _python(body, f"{page.stem}_{line}.py", namespace)
            ran += 1
    print(f"{ran} blocks ran")
    return 0


def _python(body: str, name: str, namespace: dict[str, Any]) -> None:
    # The block is a file, so that reports can show its lines.
    path = Path(name).resolve()
    path.write_text(body, encoding="utf-8")
    exec(compile(body, str(path), "exec"), namespace)


def _console(body: str, where: str) -> None:
    commands = re.sub(r"\\\n\s*", "", body)
    for line in re.findall(r"^\$ (.+)$", commands, re.MULTILINE):
        expected = _EXIT.search(line)
        done = subprocess.run(["bash", "-c", line], timeout=_SECONDS, stdin=subprocess.DEVNULL)
        if done.returncode != (int(expected[1]) if expected else 0):
            raise SystemExit(f"{where}: `{line}` exited with {done.returncode}")


def _dedented(body: str, indent: str) -> str:
    return "\n".join(line.removeprefix(indent) for line in body.split("\n"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
