"""What no segment holds yet, as Arrow tables: so that SQL sees a live trace whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelens.storage.encode import Encoder
from tracelens.storage.eventlog import EventRows
from tracelens.storage.live import LineFollower

if TYPE_CHECKING:
    import pyarrow as pa

    from tracelens.storage.shardreader import ShardReader


def tail_tables(reader: ShardReader) -> dict[str, pa.Table]:
    """Return a shard's unsealed rows by table, each with a column ``shard`` at the end."""
    state = reader.shard.state
    tables: dict[str, pa.Table] = {}
    live = reader.live()
    if live is not None and len(live.records):
        encoder = Encoder(state.rank, lambda: live.strings)
        tables.update(encoder.tables(live.records))
        sealed_sources = sum(file.rows for file in reader.shard.segments.get("sources", ()))
        sources = encoder.sources(sealed_sources)
        if sources.num_rows:
            tables["sources"] = sources
    if reader.shard.events is not None:
        tables.update(_event_tables(reader))
    return {name: _with_shard(table, state.shard) for name, table in tables.items()}


def _event_tables(reader: ShardReader) -> dict[str, pa.Table]:
    state = reader.shard.state
    assert reader.shard.events is not None
    try:
        lines = LineFollower(reader.shard.events, state.events_sealed_bytes)
    except OSError:
        return {}
    try:
        rows = EventRows(state.rank, state.n_events)
        rows.add_all(lines.read())
        return rows.tables()
    finally:
        lines.close()


def _with_shard(table: pa.Table, shard: str) -> pa.Table:
    import pyarrow as pa

    return table.append_column("shard", pa.repeat(shard, table.num_rows))
