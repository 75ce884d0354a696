"""What took most time: ops, modules, source lines, kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelens.events import OpFlag
from tracelens.plots.series import Chart, Ranking, Row
from tracelens.texts import duration

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

TOP = 15

_PATH_PARTS = 3

# Composite ops contain others that are recorded too: counting both would count time twice.
_LEAVES = f"ops WHERE duration_ns IS NOT NULL AND (flags & {int(OpFlag.COMPOSITE)}) = 0"
_KERNELS = "kernels WHERE duration_ns IS NOT NULL"


def op_chart(reader: TraceReader, rank: int | None = None, top: int = TOP) -> Chart:
    """Return the ops by the time that they took on the host."""
    missing = 'no op has a duration: record with capture="ops" or import a profile'
    return _chart(reader, "ops", "Top ops", "name", "name", _LEAVES, "ops", rank, top, missing)


def line_chart(reader: TraceReader, rank: int | None = None, top: int = TOP) -> Chart:
    """Return the source lines by the time of the ops that they issued."""
    missing = "no op with a duration knows its source line"
    source = f"{_LEAVES} AND file IS NOT NULL"
    return _chart(
        reader,
        "lines",
        "Top source lines",
        "file || ':' || line",
        "file, line",
        source,
        "ops",
        rank,
        top,
        missing,
    )


def short_place(place: str) -> str:
    """Return a source line with the end of its path, which tells more than the beginning.

    Examples:
        >>> short_place("/home/me/project/src/app/train.py:12"), short_place("train.py:3")
        ('…/src/app/train.py:12', 'train.py:3')
    """
    parts = place.split("/")
    return place if len(parts) <= _PATH_PARTS + 1 else "/".join(["…", *parts[-_PATH_PARTS:]])


def kernel_chart(reader: TraceReader, rank: int | None = None, top: int = TOP) -> Chart:
    """Return the kernels and copies by the time that they took on the device."""
    missing = "the trace holds no kernels: record with profile=True or import a profile of a device"
    return _chart(
        reader, "kernels", "Top kernels", "name", "name", _KERNELS, "kernels", rank, top, missing
    )


def _chart(
    reader: TraceReader,
    key: str,
    title: str,
    name: str,
    by: str,
    source: str,
    what: str,
    rank: int | None,
    top: int,
    missing: str,
) -> Chart:
    where = "" if rank is None else f" AND rank = {int(rank)}"
    found = reader.sql(
        f"SELECT {name}, count(*), sum(duration_ns)::BIGINT AS total, "
        f"sum(sum(duration_ns)) OVER ()::BIGINT, count(*) OVER () "
        f"FROM {source}{where} GROUP BY {by} ORDER BY total DESC, 1 LIMIT {int(top)}"
    )
    if not found:
        return Chart(key, title, missing=missing)
    total, names = int(found[0][3]), int(found[0][4])
    rows = tuple(
        Row(
            short_place(str(each)) if key == "lines" else str(each),
            int(count),
            int(time_ns),
            int(time_ns) / total if total else 0.0,
        )
        for each, count, time_ns, *_ in found
    )
    shown = f", the {len(rows)} largest of {names}" if names > len(rows) else ""
    return Chart(key, title, f"{duration(total)} in all{shown}.", Ranking(rows, what))
