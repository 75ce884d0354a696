"""Whole columns on their way from a training process to its sealer: ``_live/<shard>.spool-N.npz``.

A profiler hands over millions of values at once. The training process writes them as they are
(uncompressed NumPy arrays and one JSON header in a zip file, whose CRC-32 tell damage) and goes on;
the sealer turns them into Parquet. A spool is renamed into place when it is whole, so a program
that is killed leaves whole spools only, which ``tracelens repair`` finds.

A file is data: arrays are read without pickle, and nothing in it may be compressed, so that it
never takes more memory than it has bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.errors import TraceError
from tracelens.storage.columns import Coded, Masked
from tracelens.storage.jsonlines import dumps
from tracelens.storage.manifest import LIVE_DIR
from tracelens.storage.tables import SHARD_TABLES

MAX_SPOOL_BYTES = 4 << 30
"""A larger file is refused: the largest stretch of profiling makes a tenth of it."""

_HEADER = "header.json"
_MAX_TABLES = 64
_KINDS = "biuf"

Tables = Mapping[str, Mapping[str, Any]]


def write_spool(run_dir: Path, shard: str, number: int, tables: Tables) -> Path:
    """Write tables of columns for the sealer; return the file.

    Args:
        run_dir: the trace.
        shard: the shard that the rows belong to.
        number: how many spools this shard had before.
        tables: table name to columns, as ``storage.columns`` says.

    Raises:
        OSError: the disk is full; no partial file is left.
        TypeError: a column is neither numbers nor texts.
    """
    path = run_dir / LIVE_DIR / f"{shard}.spool-{number}.npz"
    temporary = path.with_name(f".tmp-{path.name}")
    header: dict[str, dict[str, Any]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for table, columns in tables.items():
        header[table] = {}
        for name, column in columns.items():
            header[table][name] = _put(f"{table}.{name}", column, arrays)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
            file.writestr(_HEADER, dumps(header))
            for key, array in arrays.items():
                with file.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return path


def read_spool(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of a spool, their columns as ``bulk.arrow_table`` takes them.

    Raises:
        TraceError: it is damaged, or no spool.
        OSError: it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_SPOOL_BYTES:
            raise ValueError(f"larger than {MAX_SPOOL_BYTES >> 30} GiB")
        with zipfile.ZipFile(path) as file:
            if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
                raise ValueError("compressed")
            header = json.loads(file.read(_HEADER))
            if not isinstance(header, dict) or len(header) > _MAX_TABLES:
                raise ValueError("no table of contents")
            return {table: _table(file, table, columns) for table, columns in header.items()}
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TraceError(f"{path}: damaged profile rows: {text}") from error


def spools(run_dir: Path, shard: str) -> list[tuple[int, Path]]:
    """Return the numbers and paths of a shard's spools, in the order they were written."""
    pattern = re.compile(re.escape(shard) + r"\.spool-(\d{1,9})\.npz")
    found = []
    try:
        with os.scandir(run_dir / LIVE_DIR) as entries:
            for entry in entries:
                match = pattern.fullmatch(entry.name)
                if match:
                    found.append((int(match[1]), Path(entry.path)))
    except FileNotFoundError:
        pass
    return sorted(found)


def _put(key: str, column: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """Add a column's arrays; return how it is put together from them."""
    if isinstance(column, Coded):
        arrays[f"{key}.codes"] = _checked(key, column.codes)
        return {"texts": [_utf8(text) for text in column.texts]}
    if isinstance(column, Masked):
        arrays[key] = _checked(key, column.values)
        arrays[f"{key}.null"] = _checked(key, column.null)
        return {"null": True}
    if column is None or isinstance(column, str | int | float):
        return {"value": _utf8(column) if isinstance(column, str) else column}
    arrays[key] = _checked(key, column)
    return {}


def _checked(key: str, values: Any) -> NDArray[Any]:
    array = np.ascontiguousarray(values)
    if array.dtype.kind not in _KINDS or array.ndim != 1:
        raise TypeError(f"{key}: {array.dtype} of {array.ndim} dimensions is no column")
    return array


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _table(file: zipfile.ZipFile, table: str, columns: Any) -> dict[str, Any]:
    if table not in SHARD_TABLES or not isinstance(columns, dict):
        raise ValueError(f"no table {table[:40]!r}")
    made: dict[str, Any] = {}
    lengths = set()
    for name, how in columns.items():
        key = f"{table}.{name}"
        if not isinstance(how, dict):
            raise ValueError(f"{key}: no column")
        if "value" in how:
            made[name] = how["value"]
            continue
        array = _array(file, f"{key}.codes" if "texts" in how else key)
        lengths.add(len(array))
        if "texts" in how:
            made[name] = Coded(array, _texts(how["texts"], array))
        elif how.get("null"):
            made[name] = Masked(array, _array(file, f"{key}.null").astype(bool))
            lengths.add(len(made[name].null))
        else:
            made[name] = array
    if len(lengths) > 1:
        raise ValueError(f"{table}: columns of different lengths")
    return made


def _array(file: zipfile.ZipFile, key: str) -> NDArray[Any]:
    # Reading the member whole makes zipfile compare its CRC-32.
    raw = file.read(f"{key}.npy")
    data = io.BytesIO(raw)
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError(f"{key}: no column")
    shape, _, dtype = np.lib.format.read_array_header_1_0(data, max_header_size=4096)
    if dtype.kind not in _KINDS or len(shape) != 1:
        raise ValueError(f"{key}: no column")
    # A header that claims more than there is must not be given the memory for it.
    if shape[0] * dtype.itemsize != len(raw) - data.tell():
        raise ValueError(f"{key}: cut off")
    return np.frombuffer(raw, dtype, offset=data.tell())


def _texts(texts: Any, codes: NDArray[Any]) -> Sequence[str]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("texts are no texts")
    if codes.dtype.kind not in "iu" or (len(codes) and int(codes.max()) >= len(texts)):
        raise ValueError("codes without a text")
    return texts
