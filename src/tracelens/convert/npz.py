"""Export a trace to a NumPy ``.npz`` archive that ``numpy.load`` opens without pickle.

``<table>/<column>`` is a column of numbers; NULL is NaN in a float column and the smallest
int64 in an integer column. A column of strings is two arrays: ``<table>/<column>`` holds indices
(-1 = NULL) into the strings ``<table>/<column>.values``. A column of lists is ``<column>`` (all
elements) and ``<column>.offsets`` (one more than rows). ``tensor/<step>/<name>`` is a stored value.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.convert._output import new_file
from tracelens.errors import ConfigError, TraceError
from tracelens.storage.tables import TABLES, Column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracelens.storage.reader import TraceReader

EXPORTED = ("ops", "stats", "steps")
NULL_INT = np.iinfo(np.int64).min

_DTYPES = {
    "int32": np.int64,
    "int64": np.int64,
    "float32": np.float32,
    "float64": np.float64,
    "bool": np.int64,
}


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    tables: tuple[str, ...] = EXPORTED,
    tensors: bool = True,
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
) -> int:
    """Write tables and stored values. One column is in memory at a time.

    Args:
        reader: an open trace.
        out_path: the file to write.
        tables: which tables.
        tensors: also write the stored values.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        force: replace an existing file.

    Returns:
        How many arrays were written.

    Raises:
        ConfigError: there is no such table, or ``out_path`` exists.
        TraceLensError: the file cannot be written.
    """
    for table in tables:
        if table not in EXPORTED:
            raise ConfigError(f"no table {table!r} for npz: choose from {', '.join(EXPORTED)}")
    with new_file(out_path, force=force) as temporary:
        archive = _Archive(temporary)
        try:
            for table in tables:
                for column in TABLES[table]:
                    values = _values(reader, table, column, first_step, last_step)
                    for suffix, array in _arrays(column, values):
                        archive.add(f"{table}/{column.name}{suffix}", array)
            if tensors:
                _add_tensors(reader, archive, first_step, last_step)
        finally:
            archive.close()
        return archive.count


class _Archive:
    """A ``.npz``: a zip of ``.npy`` members, written one at a time."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._names: set[str] = set()

    def add(self, name: str, array: NDArray[Any]) -> None:
        unique, again = name, 0
        while unique in self._names:
            again += 1
            unique = f"{name}#{again}"
        self._names.add(unique)
        with self._zip.open(unique + ".npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        self.count += 1

    def close(self) -> None:
        self._zip.close()


def _values(
    reader: TraceReader, table: str, column: Column, first: int | None, last: int | None
) -> list[Any]:
    values: list[Any] = []
    columns = [column.name] if column.name == "step" else [column.name, "step"]
    for block in reader.scan(table, columns, first, last):
        values += [
            row[0]
            for row in block
            if (first is None or row[-1] >= first) and (last is None or row[-1] <= last)
        ]
    return values


def _arrays(column: Column, values: list[Any]) -> list[tuple[str, NDArray[Any]]]:
    if column.type in ("string", "dictionary"):
        index: dict[str, int] = {}
        codes = [-1 if text is None else index.setdefault(text, len(index)) for text in values]
        texts = np.array(list(index), dtype=np.str_) if index else np.empty(0, dtype="<U1")
        return [("", np.array(codes, dtype=np.int32)), (".values", texts)]
    if column.type == "list<int64>":
        lists = [entry or [] for entry in values]
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(entry) for entry in lists], out=offsets[1:])
        flat = np.array([item for entry in lists for item in entry], dtype=np.int64)
        return [("", flat), (".offsets", offsets)]
    null: float = np.nan if column.type.startswith("float") else NULL_INT
    filled = [null if value is None else value for value in values]
    return [("", np.array(filled, dtype=_DTYPES[column.type]))]


def _add_tensors(
    reader: TraceReader, archive: _Archive, first: int | None, last: int | None
) -> None:
    for row in reader.tensors():
        step, name = row["step"], row["name"]
        if (first is not None and step < first) or (last is not None and step > last):
            continue
        try:
            array = reader.tensor_of(row)
        except TraceError:
            continue  # a damaged value is told by ``verify``; the others are still exported
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        archive.add(f"tensor/{step}/{safe}", array)
