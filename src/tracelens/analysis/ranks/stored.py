"""Putting the clocks' offsets into a trace, once every rank has closed its shard.

The process that seals the last shard does it: no rank knows the others' times, the directory does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tracelens.analysis.ranks.clocks import align
from tracelens.analysis.ranks.waits import find_source
from tracelens.engines import open_engine
from tracelens.storage.catalog import open_catalog
from tracelens.storage.manifest import write_shard
from tracelens.storage.summary import write_run_tables


def align_run(run_dir: Path) -> int:
    """Write each shard's estimated offset into its state; return how many changed.

    Nothing is done while a rank still records, or where the ranks share a clock.

    Args:
        run_dir: the trace.

    Raises:
        TraceLensError: the trace cannot be read.
        OSError: it cannot be written.
    """
    shards = open_catalog(run_dir).shards
    if any(shard.alive for shard in shards):
        return 0
    if not any("collectives" in shard.segments for shard in shards):
        return 0
    with open_engine(run_dir) as engine:
        source = find_source(engine, ("collectives",))
        clocks = {clock.shard: clock for clock in align(engine, source)} if source else {}
        states = engine.reader.shards()
    changed = 0
    for state in states:
        clock = clocks.get(state.shard)
        if clock is None or clock.calls == 0 or clock.offset_ns == state.clock_offset_ns:
            continue
        write_shard(run_dir, replace(state, clock_offset_ns=clock.offset_ns))
        changed += 1
    if changed:
        write_run_tables(run_dir)
    return changed
