"""What a trace holds, in numbers: steps, ops, where the time went, scalars, findings, ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tracelens.engines import queries
from tracelens.scalars import scalars_of

if TYPE_CHECKING:
    from tracelens.engines import Engine
    from tracelens.storage.reader import TraceReader
    from tracelens.storage.sql import Row

Json = dict[str, Any]

_GROUPS: dict[str, Callable[[Row], str]] = {
    "op": lambda row: row[0] or "",
    "module": lambda row: row[1] or "",
    "phase": lambda row: row[2] or "",
    "source": lambda row: f"{row[3]}:{row[4]}" if row[3] and row[4] is not None else "",
}
_RANK_SOURCES = ("collectives", "kernels", "spans")


def overview(reader: TraceReader, *, top: int = 10, engine: Engine | None = None) -> Json:
    """Return a summary of a trace, JSON-ready.

    Args:
        reader: an open trace.
        top: rows of each ranking.
        engine: what runs the queries; DuckDB by default.

    Returns:
        ``trace`` (path, format, shards, problems), ``steps``, ``ops``, ``time`` (one ranking
        each by op, module, phase and source line), ``scalars``, ``findings``, ``notes``,
        ``ranks`` (``None`` for a run of one process). Times are in nanoseconds; rankings are
        empty where no durations were recorded (guard level).
    """
    if engine is None:
        from tracelens.engines.duckdb_engine import DuckDBEngine

        engine = DuckDBEngine(reader)
    health = reader.health()
    count, first, last, n_ops, hits, median_ns, max_ns = engine.rows(queries.STEPS)[0]
    slowest = engine.rows(queries.SLOWEST_STEP)
    # One pass over the ops: the rankings are sums over its groups, of which there are few.
    groups = engine.rows(queries.OPS)
    # A recorded op and a profiled one may be the same op: its time counts once.
    timed = [row for row in groups if row[9]] or groups
    total_ns = sum(row[7] for row in timed if row[7] is not None)
    return {
        "trace": {
            "path": str(reader.path),
            "version": reader.manifest.version,
            "shards": len(health.shards),
            "states": sorted({shard.state for shard in health.shards}),
            "problems": [*health.lines(), *engine.problems],
        },
        "steps": {
            "count": count,
            "first": first,
            "last": last,
            "n_ops": n_ops,
            "hits": hits,
            "median_duration_ns": median_ns,
            "max_duration_ns": max_ns,
            "slowest": slowest[0][0] if slowest else None,
        },
        "ops": {
            "recorded": sum(row[5] for row in groups),
            "profiled": sum(row[5] for row in groups if row[9]),
            "nonfinite": sum(row[8] for row in groups),
            "duration_ns": total_ns if any(row[7] is not None for row in timed) else None,
            "steps_with_ops": engine.rows(queries.OP_STEPS)[0][0],
        },
        "time": {
            label: _ranking(timed, key, total_ns, top) if total_ns else []
            for label, key in _GROUPS.items()
        },
        "scalars": _scalars(engine),
        "findings": _rows(engine, queries.FINDINGS, "step rule severity message times"),
        "notes": _rows(engine, queries.NOTES, "kind severity message step times"),
        "ranks": _ranks(reader, engine),
    }


def _rows(engine: Engine, sql: str, names: str) -> list[Json]:
    return [dict(zip(names.split(), row, strict=False)) for row in engine.rows(sql)]


def _ranking(groups: list[Row], key: Callable[[Row], str], total_ns: int, top: int) -> list[Json]:
    """Add up the timed ops of all groups of one name, the longest total first."""
    added: dict[str, list[int]] = {}
    for row in groups:
        if row[6]:  # a trace may hold timed and untimed ops
            entry = added.setdefault(key(row), [0, 0])
            entry[0] += row[6]
            entry[1] += row[7]
    best = sorted(added.items(), key=lambda item: (-item[1][1], item[0]))[:top]
    return [
        {"name": name, "count": count, "duration_ns": ns, "share": ns / total_ns}
        for name, (count, ns) in best
    ]


def _scalars(engine: Engine) -> Json:
    """Return first, last, least and greatest of every scalar that steps carry."""
    found: Json = {}
    for step, text in engine.rows(queries.SCALARS):
        for name, number in scalars_of(text):
            entry = found.setdefault(
                name, {"count": 0, "first": number, "min": number, "max": number}
            )
            entry["count"] += 1
            entry["last"], entry["last_step"] = number, step
            entry["min"] = min(entry["min"], number)
            entry["max"] = max(entry["max"], number)
    return found


def _ranks(reader: TraceReader, engine: Engine) -> Json | None:
    """Return what sets the ranks of a run apart: missing, slow, late, on another clock."""
    present, world_size = reader.ranks(), reader.manifest.world_size
    # The world size is a number from a file: never count further than there can be ranks.
    world_size = min(world_size, 1 << 20) if isinstance(world_size, int) else 1
    if len(present) < 2 and world_size < 2:
        return None
    from tracelens.analysis.ranks.clocks import align
    from tracelens.analysis.ranks.waits import find_source, rank_waits
    from tracelens.analysis.ranks.wrong import first_bad

    source = find_source(engine, _RANK_SOURCES)
    waits = {wait.rank: wait for wait in rank_waits(engine, source)} if source else {}
    clocks = {clock.rank: clock for clock in align(engine, source)}
    rows = []
    for rank, steps, _, median_ns, max_ns, last, _ in engine.rows(queries.RANK_STEPS):
        wait, clock = waits.get(rank), clocks.get(rank)
        rows.append(
            {
                "rank": rank,
                "steps": steps,
                "last_step": last,
                "median_duration_ns": median_ns,
                "max_duration_ns": max_ns,
                "own_ns": wait.own_ns if wait else None,
                "waited_ns": wait.waited_ns if wait else None,
                "caused_ns": wait.caused_ns if wait else None,
                "clock_offset_ns": clock.offset_ns if clock else None,
                "clock_error_ns": clock.error_ns if clock else None,
            }
        )
    known = set(present)
    return {
        "count": len(present),
        "world_size": world_size,
        "missing": [rank for rank in range(world_size) if rank not in known],
        "slowest": _slowest(rows),
        # Only a finding blames a value; without any, no rank went wrong.
        "first_nonfinite": first_bad(engine, clocks)[0].rank
        if engine.rows(queries.ERRORS)
        else None,
        "rows": rows,
    }


def _slowest(rows: list[Json]) -> int | None:
    """Return the rank whose steps take it longest, without its waits where those are known."""
    timed = [row for row in rows if row["median_duration_ns"] is not None]
    own = [row for row in timed if row["own_ns"] is not None]
    return max(
        own or timed,
        key=lambda row: (row["own_ns"] or row["median_duration_ns"], -row["rank"]),
        default={"rank": None},
    )["rank"]
