"""What a trace holds, in numbers: steps, ops, where the time went, scalars, findings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

Json = dict[str, Any]

# Composite ops contain others that are recorded too: counting both would count time twice.
# 128 is events.OpFlag.COMPOSITE.
_LEAVES = "FROM ops WHERE (flags & 128) = 0"

_TOTALS = f"""
    SELECT count(*), count(*) FILTER (WHERE nan_count > 0 OR inf_count > 0),
           sum(duration_ns), count(DISTINCT step) {_LEAVES}"""
_STEPS = """
    SELECT count(*), min(step), max(step), sum(n_ops), sum(hits),
           median(duration_ns), max(duration_ns), arg_max(step, duration_ns) FROM steps"""
_GROUPS = {
    "op": "name",
    "module": "coalesce(module, '')",
    "phase": "phase",
    "source": "coalesce(file || ':' || line, '')",
}
_SCALARS = "SELECT step, scalars FROM steps WHERE scalars IS NOT NULL ORDER BY step"
_FINDINGS = """
    SELECT step, name AS rule, severity, message, count(*) AS times FROM events
    WHERE kind = 'finding' GROUP BY ALL ORDER BY step, min(event_id)"""
_NOTES = """
    SELECT name AS kind, severity, message, min(step) AS step, count(*) AS times FROM events
    WHERE kind = 'note' GROUP BY ALL ORDER BY step, kind"""


def overview(reader: TraceReader, *, top: int = 10) -> Json:
    """Return a summary of a trace, JSON-ready.

    Args:
        reader: an open trace.
        top: rows of each ranking.

    Returns:
        ``trace`` (path, format, shards, problems), ``steps``, ``ops``, ``time`` (one ranking
        each by op, module, phase and source line), ``scalars``, ``findings``, ``notes``. Times
        are in nanoseconds; rankings are empty where no durations were recorded (guard level).
    """
    health = reader.health()
    count, first, last, n_ops, hits, median_ns, max_ns, slowest = _one(reader, _STEPS)
    recorded, bad, total_ns, with_ops = _one(reader, _TOTALS)
    return {
        "trace": {
            "path": str(reader.path),
            "version": reader.manifest.version,
            "shards": len(health.shards),
            "states": sorted({shard.state for shard in health.shards}),
            "problems": health.lines(),
        },
        "steps": {
            "count": count,
            "first": first,
            "last": last,
            "n_ops": n_ops,
            "hits": hits,
            "median_duration_ns": median_ns,
            "max_duration_ns": max_ns,
            "slowest": slowest,
        },
        "ops": {
            "recorded": recorded,
            "nonfinite": bad,
            "duration_ns": total_ns,
            "steps_with_ops": with_ops,
        },
        "time": {
            label: _ranking(reader, expression, top) if total_ns else []
            for label, expression in _GROUPS.items()
        },
        "scalars": _scalars(reader),
        "findings": _rows(reader, _FINDINGS, "step rule severity message times"),
        "notes": _rows(reader, _NOTES, "kind severity message step times"),
    }


def _one(reader: TraceReader, sql: str) -> tuple[Any, ...]:
    return tuple(reader.sql(sql)[0])


def _rows(reader: TraceReader, sql: str, names: str) -> list[Json]:
    return [dict(zip(names.split(), row, strict=True)) for row in reader.sql(sql)]


def _ranking(reader: TraceReader, expression: str, top: int) -> list[Json]:
    return _rows(
        reader,
        f"SELECT {expression} AS name, count(*) AS n, sum(duration_ns) AS total, "
        f"sum(duration_ns) / sum(sum(duration_ns)) OVER () {_LEAVES} "
        f"AND duration_ns IS NOT NULL "  # a trace may hold timed and untimed ops
        f"GROUP BY 1 ORDER BY total DESC NULLS LAST, 1 LIMIT {int(top)}",
        "name count duration_ns share",
    )


def _scalars(reader: TraceReader) -> Json:
    """Return first, last, least and greatest of every scalar that steps carry."""
    found: Json = {}
    for step, text in reader.sql(_SCALARS):
        for name, value in json.loads(text).items():
            number = float(value)
            entry = found.setdefault(
                name, {"count": 0, "first": number, "min": number, "max": number}
            )
            entry["count"] += 1
            entry["last"], entry["last_step"] = number, step
            entry["min"] = min(entry["min"], number)
            entry["max"] = max(entry["max"], number)
    return found
