"""Which code is the user's own, and what its lines say: shared by the framework plugins."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from tracelens.events import Source

_LIBRARIES = (
    "tracelens", "tracelens_torch", "tracelens_tensorflow", "tracelens_tui", "pytest_tracelens",
    "numpy", "_pytest", "pluggy", "pytest", "einops", "opt_einsum",
)  # fmt: skip
_PACKAGES = f"{os.sep}site-packages{os.sep}"
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_CORE = str(Path(__file__).absolute().parent) + os.sep


class UserFiles:
    """Tells the user's files from those of Python, TraceLens and libraries.

    A package that is installed but not listed counts as the user's: a model's code may well be
    installed.

    Args:
        libraries: names of packages (as found in ``site-packages``) that are never the user's.
        directories: further directories whose files are not the user's.
        prefixes: beginnings of names of code that no file holds (``"<eval_with_key>"``).
        parts: what names of generated files contain.
    """

    def __init__(
        self,
        libraries: Iterable[str] = (),
        directories: Iterable[str | Path] = (),
        prefixes: Iterable[str] = (),
        parts: Iterable[str] = (),
    ) -> None:
        self._libraries = frozenset((*_LIBRARIES, *libraries))
        absolute = (str(Path(directory).absolute()) + os.sep for directory in directories)
        self._beginnings = (*absolute, _CORE, "<frozen", *prefixes)
        self._parts = tuple(parts)
        self._known: dict[str, bool] = {}

    def owns(self, file: str) -> bool:
        """Tell whether a file is the user's own.

        Args:
            file: its path as Python reports it (``co_filename``).
        """
        known = self._known.get(file)
        if known is None:
            known = self._known[file] = self._judge(file)
        return known

    def _judge(self, file: str) -> bool:
        if file.startswith(self._beginnings) or any(part in file for part in self._parts):
            return False
        if _PACKAGES in file:
            package = file.rpartition(_PACKAGES)[2].partition(os.sep)[0].removesuffix(".py")
            return package not in self._libraries
        return not file.startswith(_STDLIB)


def directory_of(package: str) -> str:
    """Return the directory of an imported package, the standard library's if it is not imported."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return str(Path(file).absolute().parent) if file else _STDLIB.rstrip(os.sep)


def text_of(file: str, line: int) -> str:
    """Return the text of a line, stripped; empty if it cannot be read."""
    return linecache.getline(file, line).strip()


def source_at(file: str, line: int, function: str) -> Source:
    """Return a place in the user's code with the text of its line."""
    return Source(file, line, function, text_of(file, line))


def source_keys(source: Source) -> dict[str, Any]:
    """Return the source keys of a ``site``: file, line, function and the line's text."""
    return {
        "file": source.file,
        "line": source.line,
        "function": source.function,
        "code": source.code,
    }


def line_of(code: CodeType, lasti: int) -> int:
    """Return the line of the instruction at a byte offset, 1-based."""
    line = code.co_firstlineno
    for start, end, at in code.co_lines():
        if start <= lasti < end:
            return at or line
        if at is not None and start <= lasti:
            line = at
    return line
