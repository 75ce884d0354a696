"""Maps of modules by steps: how large gradients are, and where values are not finite.

DuckDB groups the ops where they lie, so a trace of any size gives a bounded number of rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tracelens.events import OpFlag
from tracelens.plots.curves import number_or_none
from tracelens.plots.series import Cell, Chart, HeatMap

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

MAX_ROWS = 60
MAX_COLUMNS = 120

_NO_MODULE = "(no module)"
# A composite op only hands on what its children made, and a view what it looks at.
_PASSING = int(OpFlag.COMPOSITE | OpFlag.VIEW)
# Uninitialised memory, and constants that the program itself fills in, are no failures.
_INTENDED = int(OpFlag.GARBAGE | OpFlag.CONSTANT)
_CHECKED = int(OpFlag.CHECKED | OpFlag.HIT)
_LINE = "regexp_extract(file, '[^/]*$') || ':' || line"

_BAD = "coalesce({t}nan_count, 0) AS nans, coalesce({t}inf_count, 0) AS infs"
_GRADIENTS = f"""
    SELECT {{key}} AS row, step, op_id, l2, {_BAD.format(t="")} FROM ops AS o
    WHERE phase = 'backward' AND numel IS NOT NULL AND (flags & {_PASSING}) = 0 {{where}}
    UNION ALL BY NAME
    SELECT {{key}} AS row, o.step, o.op_id, t.l2, {_BAD.format(t="t.")}
    FROM ops AS o JOIN stats AS t ON t.shard = o.shard AND t.op_id = o.op_id
    WHERE phase = 'backward' AND t.role = 'out' AND t.slot > 0
      AND (o.flags & {_PASSING}) = 0 {{where}}"""
_OUTPUTS = f"""
    SELECT {{key}} AS row, step, op_id, 0.0 AS l2,
        coalesce(nan_count, CASE WHEN flags & {int(OpFlag.HIT)} > 0 THEN 1 ELSE 0 END) AS nans,
        coalesce(inf_count, 0) AS infs
    FROM ops AS o WHERE (flags & {_PASSING | _INTENDED}) = 0
      AND (numel IS NOT NULL OR (flags & {_CHECKED}) > 0) {{where}}"""
# The ops are read twice and grouped by column at once: a table of modules by steps, which may be
# as long as that of the ops, never exists.
_CELLS = """
    SELECT s.row, (s.step - a.lo) // a.width AS col, max(s.l2), sum(s.nans)::BIGINT,
           sum(s.infs)::BIGINT, min(a.lo), min(a.width), min(a.place), min(a.n)
    FROM ({source}) AS s JOIN (
        SELECT row, min(op_id) AS place, count(*) OVER () AS n,
               min(min(step)) OVER ()::HUGEINT AS lo,
               (max(max(step)) OVER () - min(min(step)) OVER ()::HUGEINT) // {columns} + 1 AS width
        FROM ({source}) WHERE row IS NOT NULL AND step >= 0 GROUP BY row
        ORDER BY sum(nans + infs) > 0 DESC, max(l2) = 0 DESC,
                 abs(ln(nullif(max(l2), 0)) - avg(ln(nullif(max(l2), 0))) OVER ()) DESC NULLS LAST,
                 row LIMIT {rows}
    ) AS a ON a.row = s.row
    WHERE s.step >= 0 GROUP BY s.row, col ORDER BY min(a.place), col"""


def gradient_chart(reader: TraceReader, rank: int | None = None) -> Chart:
    """Return the map of gradient norms.

    A cell is the largest Euclidean norm of a tensor that the module's backward ops wrote: the
    gradients of its parameters and of its inputs, in the steps of the column.

    Args:
        reader: an open trace.
        rank: whose; of all ranks together if ``None``.
    """
    title = "Gradient flow"
    rows = _rows(reader, _GRADIENTS, rank)
    if not rows:
        missing = (
            'no backward op has statistics: record with --capture ops, or capture="ops" in tl.trace'
        )
        return Chart("gradients", title, missing=missing)
    # The backward pass runs from the last module to the first.
    found = _heat_map(rows, last_first=True)
    about = (
        "Largest norm of a gradient that the backward of each module made, of its parameters and "
        f"inputs{_columns_told(found)}{_rows_told(found)}."
    )
    return Chart("gradients", title, about, found)


def nonfinite_chart(reader: TraceReader, rank: int | None = None) -> Chart:
    """Return the map of modules whose ops had a NaN or Inf in their output.

    Args:
        reader: an open trace.
        rank: whose; of all ranks together if ``None``.
    """
    title = "Non-finite values"
    rows = _rows(reader, _OUTPUTS, rank, spare=_NO_MODULE)
    if not rows:
        return _from_steps(reader, title, rank)
    bad = {row[0] for row in rows if row[3] or row[4]}
    if not bad:
        return Chart("nonfinite", title, "No op that was looked at had a NaN or Inf in its output.")
    found = _plain([row for row in rows if row[0] in bad])
    noun = "module" if len(bad) == 1 else "modules"
    about = f"NaN and Inf elements in the outputs of {len(bad)} {noun}{_columns_told(found)}."
    return Chart("nonfinite", title, about, found)


def _from_steps(reader: TraceReader, title: str, rank: int | None) -> Chart:
    """Return what the steps alone tell: in which of them any op was hit."""
    where = "" if rank is None else f"AND rank = {int(rank)}"
    rows = reader.sql(
        f"""
        WITH s AS (SELECT step, max(hits) AS hits FROM steps
                   WHERE hits IS NOT NULL AND step >= 0 {where} GROUP BY step),
             r AS (SELECT min(step) AS lo, (max(step) - min(step)) // {MAX_COLUMNS} + 1 AS width
                   FROM s)
        SELECT 'all ops', (step - lo) // width AS col, 0.0, sum(hits)::BIGINT, 0, min(lo),
               min(width), 0, 1 FROM s, r GROUP BY col ORDER BY col"""
    )
    if not rows:
        missing = "no output was checked (a profile holds times, and no values)"
        return Chart("nonfinite", title, missing=missing)
    if not any(row[3] for row in rows):
        return Chart("nonfinite", title, "No step had an op with a NaN or Inf in its output.")
    about = 'Ops with a NaN or Inf in their output, by step; capture="ops" tells the modules.'
    return Chart("nonfinite", title, about, _plain(rows))


def _plain(rows: list[tuple[Any, ...]]) -> HeatMap:
    return replace(_heat_map(rows, last_first=False), rows_left_out=0, colour=False)


def _rows(
    reader: TraceReader, source: str, rank: int | None, *, spare: str = ""
) -> list[tuple[Any, ...]]:
    """Return cells by module; by source line where no op belongs to a module."""
    key = _LINE
    if reader.sql("SELECT 1 FROM ops WHERE module IS NOT NULL LIMIT 1"):
        key = f"coalesce(module, '{spare}')" if spare else "module"
    where = "" if rank is None else f"AND o.rank = {int(rank)}"
    text = source.format(key=key, where=where)
    return reader.sql(_CELLS.format(source=text, columns=MAX_COLUMNS, rows=MAX_ROWS))


def _heat_map(rows: list[tuple[Any, ...]], *, last_first: bool) -> HeatMap:
    places = {str(row[0]): int(row[7]) for row in rows}
    names = sorted(places, key=lambda name: (-places[name] if last_first else places[name], name))
    index = {name: at for at, name in enumerate(names)}
    cells = {
        (index[str(name)], int(column)): Cell(number_or_none(value), int(nans), int(infs))
        for name, column, value, nans, infs, *_ in rows
    }
    first, width, all_rows = int(rows[0][5]), int(rows[0][6]), int(rows[0][8])
    columns = max(column for _, column in cells) + 1
    return HeatMap(tuple(names), first, width, columns, cells, max(all_rows - len(names), 0))


def _columns_told(found: HeatMap) -> str:
    width = found.steps_per_column
    return f"; each column is {width} steps" if width > 1 else ""


def _rows_told(found: HeatMap) -> str:
    if not found.rows_left_out:
        return ""
    all_rows = len(found.rows) + found.rows_left_out
    return f"; {len(found.rows)} of {all_rows} modules, those that differ most from the others"
