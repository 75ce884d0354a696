"""Named positions in a trace, kept in a small file beside it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tracelens.errors import ConfigError

_MAX_BYTES = 1 << 20
_SUFFIX = ".marks.json"


class Marks:
    """The marks of one trace: name and rank to op id.

    They are kept in ``NAME.tltrace.marks.json``, so that the trace itself is never written to.
    Where that file cannot be written they last as long as the process.

    Args:
        trace: the trace directory.
    """

    def __init__(self, trace: Path) -> None:
        self._path = trace.with_name(trace.name + _SUFFIX)
        self._marks = _read(self._path)

    def set(self, name: str, rank: int, op_id: int) -> None:
        """Remember a position.

        Raises:
            ConfigError: the name is not one word.
        """
        if not re.fullmatch(r"\S{1,64}", name):
            raise ConfigError(f"a mark's name is one word, not {name!r}")
        self._marks[name, rank] = op_id
        rows = [[name, rank, op_id] for (name, rank), op_id in sorted(self._marks.items())]
        try:
            temporary = self._path.with_name(self._path.name + f".{os.getpid()}")
            temporary.write_text(json.dumps({"marks": rows}) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            pass

    def get(self, name: str, rank: int) -> int | None:
        """Return the op id of a mark, ``None`` if there is none."""
        return self._marks.get((name, rank))

    def names(self, rank: int) -> list[str]:
        """Return the names of a rank's marks, sorted."""
        return sorted(name for name, of_rank in self._marks if of_rank == rank)


def _read(path: Path) -> dict[tuple[str, int], int]:
    """Read a file of marks; anything odd in it is left out."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    rows = told.get("marks") if isinstance(told, dict) else None
    marks = {}
    for row in rows if isinstance(rows, list) else []:
        if (
            isinstance(row, list)
            and [type(part) for part in row] == [str, int, int]
            and row[0].isprintable()
        ):
            marks[row[0], row[1]] = row[2]
    return marks
