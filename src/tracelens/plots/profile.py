"""What a profile says of device and steps, as HTML: the figures of ``tracelens profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracelens.plots.drawing import table, text
from tracelens.plots.findings import listed
from tracelens.texts import duration

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

MAX_ROWS = 5_000_000
"""The analyses hold whole columns: for more rows the page names the command instead."""

_MAX_DEVICES = 16


def profile_html(reader: TraceReader, rank: int | None = None) -> str:
    """Return the device's use, where the steps' time went, and what is worth changing.

    Args:
        reader: an open trace.
        rank: whose; the lowest rank's by default.

    Returns:
        HTML; empty for a trace that holds neither device work nor a profiler's spans.
    """
    ranks = reader.ranks()
    of_rank = rank if rank is not None else (ranks[0] if ranks else 0)
    counts = [
        reader.sql(f"SELECT count(*) FROM {name} WHERE rank = {int(of_rank)}")[0][0]
        for name in ("kernels", "spans", "ops")
    ]
    if not (counts[0] or counts[1]):
        return ""
    if sum(counts) > MAX_ROWS:
        told = f"tracelens profile {reader.path.name} --steps A:B"
        return f"<p>{sum(counts):,} rows are too many for this page: <code>{text(told)}</code></p>"
    from tracelens.analysis.profile.data import load_profile
    from tracelens.analysis.profile.overview import profile_overview

    found = profile_overview(load_profile(reader, of_rank), top=1)
    others = f"<p>Of rank {of_rank}; --rank chooses another.</p>" if len(ranks) > 1 else ""
    return others + _devices(found) + _split(found) + listed(_findings(found))


def _devices(found: dict[str, Any]) -> str:
    rows = []
    for each in found["device"][: _MAX_DEVICES + 1]:
        span = each["span_ns"] or 1
        name = "all devices" if each["device"] is None else f"device {each['device']}"
        rows.append(
            [
                name,
                f"{each['kernels']:,}",
                duration(each["span_ns"]),
                f"{100 * each['busy_ns'] / span:.1f}%",
                f"{100 * each['idle_ns'] / span:.1f}%",
                f"{100 * each['exposed_comm_ns'] / span:.1f}%",
            ]
        )
    if not rows or not found["rows"]["kernels"]:
        return ""
    head = ["device", "kernels", "span", "busy", "idle", "exposed communication"]
    return f"<figure><h3>Devices</h3>{table(head, rows)}</figure>"


def _split(found: dict[str, Any]) -> str:
    whole = found["steps"]["whole"]
    length = whole["duration_ns"]
    rows = [
        [
            part["name"],
            duration(part["duration_ns"]),
            f"{100 * part['duration_ns'] / length:.1f}%",
            duration(part["device_ns"]),
            duration(part["host_ns"]),
        ]
        for part in whole["parts"]
        if length and part["duration_ns"]
    ]
    if not rows:
        return ""
    count = found["steps"]["count"]
    over = f"Of {count} steps." if count else "Of the whole trace, in which no step is marked."
    head = ["part", "time", "share", "on a device", "host only"]
    caption = f"<figcaption>{over}</figcaption>"
    return f"<figure><h3>Where the time went</h3>{caption}{table(head, rows)}</figure>"


def _findings(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for each in found["findings"]:
        gain = f" Saves at most {100 * each['gain_share']:.1f}%." if each["gain_share"] else ""
        message = f"{each['message']}{gain} {each['advice']}"
        rows.append({**each, "message": message, "times": 1})
    return rows
