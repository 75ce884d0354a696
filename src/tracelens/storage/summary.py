"""``shards/shards.parquet`` and ``shards/segments.parquet``: every shard's state in two files."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from tracelens.errors import TraceError
from tracelens.storage.arrays import table_of
from tracelens.storage.manifest import ShardState, read_shard, shard_files
from tracelens.storage.segments import write_parquet
from tracelens.storage.tables import TABLES, arrow_schema

DIRECTORY = "shards"


def write_run_tables(run_dir: Path) -> None:
    """Rewrite both tables from the shards' JSON files; damaged ones are left out.

    Raises:
        OSError: the disk is full or the directory cannot be written.
    """
    states: list[ShardState] = []
    for path in shard_files(run_dir):
        try:
            states.append(read_shard(path))
        except TraceError:
            continue
    (run_dir / DIRECTORY).mkdir(exist_ok=True)
    shard_columns = {column.name for column in TABLES["shards"]}
    shards = [{k: v for k, v in asdict(s).items() if k in shard_columns} for s in states]
    segments = [{"shard": s.shard, **asdict(item)} for s in states for item in s.segments]
    for name, rows in (("shards", shards), ("segments", segments)):
        table = table_of(rows, arrow_schema(name))
        # Ranks that close at once each write their own view; the last one sees them all.
        temporary = run_dir / DIRECTORY / f".tmp-{name}-{os.getpid()}"
        write_parquet(name, table, temporary)
        temporary.replace(run_dir / DIRECTORY / f"{name}.parquet")
