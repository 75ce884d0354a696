"""From the figures of many ranks to sentences that say what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tracelens.texts import duration

if TYPE_CHECKING:
    from tracelens.analysis.ranks.report import RankReport
    from tracelens.analysis.ranks.waits import RankWait

Finding = dict[str, Any]

LATE_SHARE = 0.5
LATE_TIMES_CHANCE = 1.5
LATE_CALLS = 4
"""Of n equal ranks each would be last at 1 / n of the collectives. One that is last at half of
them, and at half as many again as chance would have it, of at least four, is late."""

GAIN_SHARE = 0.01
"""Gains below a hundredth of the time are within what a run differs from the next."""

TOLD_SHARE = 0.2
"""What makes up less of a late rank's delay than this does not explain it."""

CLOCK_NS = 1_000_000
"""Clocks that are a millisecond apart put kernels of two ranks into the wrong order."""


def judge(report: RankReport) -> RankReport:
    """Return the report with its findings, the gravest first."""
    found = [
        *_missing(report),
        *_restarted(report),
        *_nonfinite(report),
        *_diverged(report),
        *_mismatched(report),
        *_straggler(report),
        *_clocks(report),
    ]
    order = {"error": 0, "warning": 1, "info": 2}
    found.sort(key=lambda finding: order[finding["severity"]])
    return replace(report, findings=tuple(found))


def _finding(rule: str, severity: str, message: str, advice: str, **more: Any) -> Finding:
    return {"rule": rule, "severity": severity, "message": message, "advice": advice, **more}


def _missing(report: RankReport) -> list[Finding]:
    found = []
    if report.missing:
        shown = ranks(report.missing)
        found.append(
            _finding(
                "missing_rank",
                "warning",
                f"{shown} of {report.world_size} left no shard",
                "see whether the process started, and whether it sees the trace's directory",
                ranks=list(report.missing),
            )
        )
    killed = sorted({s for s, state in report.states.items() if state in ("killed", "failed")})
    if killed:
        found.append(
            _finding(
                "killed_rank",
                "warning",
                f"the process of shard {', '.join(killed[:6])} did not end by itself",
                "see its last steps, and the system's log (out of memory?)",
                shards=killed,
            )
        )
    return found


def _restarted(report: RankReport) -> list[Finding]:
    if not report.attempts:
        return []
    times = "once" if report.attempts == 1 else f"{report.attempts} times"
    return [
        _finding(
            "restarted",
            "info",
            f"the run was restarted {times}: each rank has a shard an attempt",
            "collectives are compared within an attempt, steps by their number",
        )
    ]


def _nonfinite(report: RankReport) -> list[Finding]:
    if not report.nonfinite:
        return []
    first = report.nonfinite[0]
    at = f" at {first.source}" if first.source else ""
    op = f"{first.op}{at}" if first.op else "a value"
    message = f"rank {first.rank} went non-finite first, in step {first.step}: {op}"
    doubt = ""
    if len(report.nonfinite) > 1:
        second = report.nonfinite[1]
        if second.step != first.step:
            message += f"; rank {second.rank} was next, in step {second.step}"
        else:
            doubt = _doubt(report)
            message += f"; rank {second.rank} in the same step{doubt}"
    return [
        _finding(
            "first_nonfinite_rank",
            "error" if first.error else "info",
            message,
            "gradients spread a NaN to all ranks: look for the cause on this one "
            "(`tracelens why`, `tracelens view`)",
            rank=first.rank,
            step=first.step,
            exact=not doubt,
        )
    ]


def _doubt(report: RankReport) -> str:
    """Say why the order of the first two is not certain; empty if it is."""
    first, second = report.nonfinite[:2]
    if first.t_ns is None or second.t_ns is None:
        return ", which of them first is not known"
    apart_ns = second.t_ns - first.t_ns
    error_ns = (first.error_ns or 0) + (second.error_ns or 0)
    if apart_ns <= error_ns:
        return f", {duration(apart_ns)} later, which is within the error of their clocks"
    return ""


def _diverged(report: RankReport) -> list[Finding]:
    told = report.divergence
    if told is None or not told.first:
        return []
    step, kind, name, versions, _, _ = told.first[0]
    who = ranks(sorted({diverged.rank for diverged in told.by_rank}))
    return [
        _finding(
            "diverged_rank",
            "error",
            f"{kind}s are not the same on all ranks from step {step}: {who} "
            f"differ{'' if ',' in who else 's'}, first {name} ({versions} versions)",
            "look for randomness without a common seed, a parameter that DDP does not know, or "
            "code that only some ranks run; parameters of sharded models differ on purpose",
            ranks=sorted({diverged.rank for diverged in told.by_rank}),
            step=step,
            name=name,
        )
    ]


def _mismatched(report: RankReport) -> list[Finding]:
    if not report.mismatched:
        return []
    first = report.mismatched[0]
    names = {first["one"], first["other"]}
    what = (
        f"{first['one']} on one rank and {first['other']} on another"
        if len(names) > 1
        else f"{first['one']} of {first['least_bytes']} and of {first['most_bytes']} bytes"
    )
    return [
        _finding(
            "mismatched_collective",
            "error",
            f"collective {first['number']} of group {first['group'] or 'default'} was {what}",
            "ranks took different branches: make every rank call the same collectives in order",
            number=first["number"],
        )
    ]


def _straggler(report: RankReport) -> list[Finding]:
    late = straggler(report)
    if late is None:
        return []
    total_ns = _total_ns(report)
    share = late.caused_ns / total_ns if total_ns else None
    message = (
        f"rank {late.rank} is the last to arrive at {late.last} of {late.calls} collectives and "
        f"costs {duration(late.caused_ns)}"
    )
    if share is not None:
        message += f", {100 * share:.1f} % of the steps' time"
    told = [part for part in report.excess[:2] if part.more_ns >= TOLD_SHARE * late.caused_ns]
    spent = [f"{part.name} ({duration(part.more_ns)} more)" for part in told]
    advice = (
        f"it spends more time than the others in {', '.join(spent)}"
        if spent
        else "compare what it does before its collectives with another rank (samples of its Python "
        "tell what is between the ops)"
    )
    return [
        _finding(
            "straggler",
            "warning",
            message,
            f"{advice}: `tracelens profile TRACE --rank {late.rank}`",
            rank=late.rank,
            gain_ns=late.caused_ns,
            gain_share=share,
        )
    ]


def straggler(report: RankReport) -> RankWait | None:
    """Return the rank that is late often, and costs enough to be told of."""
    late = max(report.waits, key=lambda wait: wait.caused_ns, default=None)
    if late is None or late.calls < LATE_CALLS:
        return None
    by_chance = 1 / max(1, len(report.waits))
    if late.last < max(LATE_SHARE, LATE_TIMES_CHANCE * by_chance) * late.calls:
        return None
    total_ns = _total_ns(report)
    if total_ns and late.caused_ns < GAIN_SHARE * total_ns:
        return None
    return late if late.caused_ns > 0 else None


def _total_ns(report: RankReport) -> int:
    """Return the time of the steps that were compared: of the rank that spent most in them."""
    warm = report.source == "collectives"  # whose first step is left out
    times = ((s.later_ns if warm and s.later_ns else s.total_ns) or 0 for s in report.steps)
    return max(times, default=0)


def _clocks(report: RankReport) -> list[Finding]:
    off = [c for c in report.clocks if c.source == "collectives" and abs(c.offset_ns) > CLOCK_NS]
    if not off:
        return []
    worst = max(off, key=lambda clock: abs(clock.offset_ns))
    return [
        _finding(
            "clock_offset",
            "info",
            f"clocks of {len(off)} ranks are more than {duration(CLOCK_NS)} away from rank "
            f"{report.ranks[0]}'s, rank {worst.rank}'s by {duration(abs(worst.offset_ns))}",
            "times of different ranks are compared after alignment (ops_aligned, timeline)",
            ranks=[clock.rank for clock in off],
        )
    ]


def ranks(numbers: tuple[int, ...] | list[int]) -> str:
    """Name some ranks.

    Examples:
        >>> ranks([3]), ranks([1, 2, 5])
        ('rank 3', 'ranks 1, 2, 5')
    """
    shown = ", ".join(str(number) for number in numbers[:8]) + (" ..." if numbers[8:] else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"
