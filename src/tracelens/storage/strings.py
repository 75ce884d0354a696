"""Interned values: sites, layouts and tensors, each written once before a record names it."""

from __future__ import annotations

import os
import threading
from typing import Any

from tracelens.storage.jsonlines import LineWriter, dumps, read_lines

MAX_STRINGS_BYTES = 64 << 20
"""A larger ``.strings`` file is not read further: it is hostile or damaged."""

KINDS = ("site", "layout", "tensor")

Strings = dict[int, tuple[str, Any]]
"""Id -> (kind, value)."""


class StringWriter:
    """Gives ids to values and keeps them in a ``.strings`` file of lines ``[id, kind, value]``."""

    def __init__(self, path: str | os.PathLike[str], known: Strings | None = None) -> None:
        """Create the file.

        Args:
            path: the ``.strings`` file.
            known: values to write at once under the ids they have (a forked child's).

        Raises:
            OSError: the file cannot be created or written.
        """
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self.values: Strings = {}
        self._lines = LineWriter(path)
        self.lost = 0
        for number, (kind, value) in (known or {}).items():
            self._lines.append([number, kind, value])
            self._ids[kind + dumps(value)] = number
            self.values[number] = (kind, value)

    def intern(self, kind: str, value: Any) -> int:
        """Return the id (>= 1) of a JSON-ready value, writing it first if it is new.

        Raises:
            OSError: the value could not be written; it has an id all the same, which later
                calls return.
        """
        key = kind + dumps(value)
        number = self._ids.get(key)
        if number is not None:
            return number
        with self._lock:
            number = self._ids.get(key)
            if number is not None:
                return number
            number = len(self.values) + 1
            self.values[number] = (kind, value)
            try:
                self._lines.append([number, kind, value])
            except OSError:
                self.lost += 1
                raise
            finally:
                self._ids[key] = number
        return number

    def detach(self) -> None:
        """In a forked child: go on giving ids, but leave the parent's file alone."""
        self._lock = threading.Lock()
        self._lines.close()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class StringReader:
    """Follows a ``.strings`` file that may still grow."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._offset = 0
        self.values: Strings = {}
        self.damaged_lines = 0

    def refresh(self) -> Strings:
        """Read the lines added since the last call; return all values."""
        left = MAX_STRINGS_BYTES - self._offset
        for line, offset in read_lines(self._path, self._offset, left):
            self._offset = offset
            if _is_entry(line):
                self.values.setdefault(line[0], (line[1], line[2]))
            else:
                self.damaged_lines += 1
        return self.values


def _is_entry(line: Any) -> bool:
    """Tell whether a line is ``[id, kind, value]`` with a value of that kind's type."""
    return (
        isinstance(line, list)
        and len(line) == 3
        and isinstance(line[0], int)
        and 0 < line[0] < 1 << 31
        and line[1] in KINDS
        and isinstance(line[2], list if line[1] == "tensor" else dict)
    )
