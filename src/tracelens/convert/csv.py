"""Export one table of a trace to a CSV file (RFC 4180, UTF-8, header line, NULL = empty)."""

from __future__ import annotations

import csv
import json
import os
from typing import TYPE_CHECKING, Any

from tracelens.convert._output import new_file
from tracelens.errors import ConfigError
from tracelens.storage.tables import SHARD_TABLES, TABLES

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    table: str = "ops",
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
) -> int:
    """Write a table, shard by shard in the order it was recorded.

    Integers are exact; floats are written so that reading them gives the same float32 or
    float64; lists are JSON.

    Args:
        reader: an open trace.
        out_path: the file to write.
        table: one of ``storage.tables.SHARD_TABLES``.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        force: replace an existing file.

    Returns:
        How many rows were written.

    Raises:
        ConfigError: there is no such table, or ``out_path`` exists.
        TraceLensError: the file cannot be written.
    """
    if table not in SHARD_TABLES:
        raise ConfigError(f"no table {table!r}: choose from {', '.join(SHARD_TABLES)}")
    columns = [column.name for column in TABLES[table]]
    step = columns.index("step") if "step" in columns else None
    rows = 0
    with (
        new_file(out_path, force=force) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        for block in reader.scan(table, columns, first_step, last_step):
            for row in block:
                if step is None or _within(row[step], first_step, last_step):
                    writer.writerow([_cell(value) for value in row])
                    rows += 1
    return rows


def _within(step: int | None, first: int | None, last: int | None) -> bool:
    if step is None:
        return first is None and last is None
    return (first is None or step >= first) and (last is None or step <= last)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value
