"""The report of ``tracelens ranks`` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracelens.texts import duration, size, table

if TYPE_CHECKING:
    from tracelens.analysis.ranks.report import RankReport


def render(report: RankReport) -> str:
    """Return the report, tables and findings."""
    parts = [_head(report), _ranks(report)]
    if report.transfers:
        parts.append(_transfers(report))
    if report.skew and report.skew[0].max_ns > report.skew[0].min_ns:
        parts.append(_skew(report))
    if report.nonfinite:
        parts.append(_nonfinite(report))
    if report.divergence is not None:
        parts.append(_divergence(report))
    parts.append(_findings(report))
    return "\n\n".join(parts)


def _head(report: RankReport) -> str:
    count = len(report.ranks)
    lines = [f"{count} of {report.world_size} rank{'s' if report.world_size > 1 else ''}"]
    if report.attempts:
        lines[0] += f", restarted {report.attempts} times"
    lines += [f"problem: {problem}" for problem in report.problems]
    if report.source is None and count > 1:
        lines.append(
            'no collectives are in the trace: record with capture="ops", or import profiles'
        )
    return "\n".join(lines)


def _ranks(report: RankReport) -> str:
    steps = {row.rank: row for row in report.steps}
    waits = {row.rank: row for row in report.waits}
    rows: list[list[Any]] = []
    for clock in report.clocks:
        mine, wait = steps.get(clock.rank), waits.get(clock.rank)
        state = report.states.get(clock.shard, "")
        rows.append(
            [
                clock.shard,
                state,
                mine.n if mine else 0,
                _time(mine.median_ns if mine else None),
                _time(wait.own_ns if wait else None),
                _time(wait.waited_ns if wait else None),
                f"{wait.last} of {wait.calls}" if wait else "-",
                _time(wait.caused_ns if wait else None),
                _offset(clock.offset_ns, clock.error_ns, clock.source),
            ]
        )
    head = ["rank", "state", "steps", "median step", "of it own", "waited", "last at",
            "cost others", "clock offset"]  # fmt: skip
    return table(head, rows)


def _transfers(report: RankReport) -> str:
    rows = [
        [
            t.name,
            t.group or "-",
            t.ranks,
            size(t.size_bytes) if t.size_bytes else "-",
            t.calls,
            _time(t.median_ns),
            "-" if t.algorithm_gbs is None else f"{t.algorithm_gbs:.2f} GB/s",
            "-" if t.bus_gbs is None else f"{t.bus_gbs:.2f} GB/s",
        ]
        for t in report.transfers
    ]
    head = ["collective", "group", "ranks", "size", "calls", "median transfer", "size/time", "bus"]
    return table(head, rows)


def _skew(report: RankReport) -> str:
    rows = [
        [s.step, _time(s.min_ns), _time(s.max_ns), _time(s.max_ns - s.min_ns), s.slowest]
        for s in report.skew[:5]
    ]
    return table(["step", "fastest rank", "slowest rank", "apart", "slowest"], rows)


def _nonfinite(report: RankReport) -> str:
    rows = [
        [
            bad.rank,
            bad.step,
            bad.op or "-",
            bad.source or "-",
            _time(bad.t_ns),
            "error" if bad.error else "seen",
        ]
        for bad in report.nonfinite[:10]
    ]
    head = ["first non-finite on rank", "step", "op", "line", "aligned time", "severity"]
    return table(head, rows)


def _divergence(report: RankReport) -> str:
    told = report.divergence
    assert told is not None
    if not told.first:
        return (
            f"parameters are the same on {told.ranks} ranks ({told.names} fingerprints in "
            f"{told.steps} steps)"
        )
    rows = [[d.rank, d.kind, d.first, d.steps, d.names] for d in told.by_rank]
    head = ["diverged rank", "what", "from step", "steps", "parameters"]
    return table(head, rows)


def _findings(report: RankReport) -> str:
    if not report.findings:
        return "nothing to look at"
    lines = ["findings"]
    for finding in report.findings:
        lines.append(f"  {finding['severity']}  {finding['rule']}: {finding['message']}")
        lines.append(f"           {finding['advice']}")
    return "\n".join(lines)


def _time(value: float | None) -> str:
    return "-" if value is None else duration(round(value))


def _offset(offset_ns: int, error_ns: int | None, source: str) -> str:
    if source == "host":
        return "same clock"
    if error_ns is None:
        return f"{duration(offset_ns)} (recorded)" if offset_ns else "not known"
    return f"{'-' if offset_ns < 0 else '+'}{duration(abs(offset_ns))} +- {duration(error_ns)}"
