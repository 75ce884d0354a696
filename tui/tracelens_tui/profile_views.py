"""What the profile screen shows: each analysis of the core as a heading and rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracelens.analysis.profile.data import ProfileData, load_profile
from tracelens.storage.reader import TraceReader
from tracelens_tui.texts import count, duration, safe, size

NO_DEVICE = "no device work was recorded: the program ran on the CPU, or its device was not traced"
GROUPINGS = ("name", "shape", "module", "line")
_ROWS = 500
_BAR = 10


@dataclass(frozen=True, slots=True)
class Head:
    """A column of a view: its heading, least width, share of the rest, and side."""

    title: str
    width: int
    share: int = 0
    right: bool = True
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a view.

    Attributes:
        cells: a text a column.
        filter: expression that picks its ops on the ops screen; empty if there are none.
        step: the training step it is of.
        tone: colour class of the first column.
        detail: what more there is to say; shown below.
    """

    cells: tuple[str, ...]
    filter: str = ""
    step: int | None = None
    tone: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """One analysis.

    Attributes:
        heads: the columns.
        lines: the rows.
        summary: one line above all.
        empty: why there are no rows.
    """

    heads: tuple[Head, ...]
    lines: Sequence[Line]
    summary: str = ""
    empty: str = "nothing was recorded"


def read(reader: TraceReader, *, name: str, by: str, rank: int) -> View:
    """Make a view of a rank's profile.

    Args:
        reader: the open trace.
        name: a key of ``VIEWS``.
        by: what ops and kernels are grouped by, one of ``GROUPINGS``.
        rank: whose.

    Raises:
        TraceLensError: the trace cannot be read.
    """
    return VIEWS[name](load_profile(reader, rank), by)


def bar(share: float) -> str:
    """Return a share, 0 to 1, as a bar and a number."""
    eighths = round(max(0.0, min(share, 1.0)) * _BAR * 8)
    full = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    return f"{full:<{_BAR}} {100 * share:5.1f}%"


_SHARE = Head("share", _BAR + 7, right=False, rank=1)


def _split(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.steps import split_steps

    found = split_steps(data)
    whole = found.whole
    heads = (
        Head("part", 14, 1, right=False), Head("time", 9), _SHARE, Head("on device", 9, rank=2),
        Head("host only", 9, rank=2), Head("hidden", 9, rank=3),
    )  # fmt: skip
    lines = [
        Line(
            (part.name, duration(part.duration_ns), bar(whole.share(part.name)),
             duration(part.device_ns), duration(part.host_ns), duration(part.hidden_ns)),
            detail=f"hidden: {duration(part.hidden_ns)} of it ran beside more important work",
        )
        for part in whole.parts
        if part.total_ns
    ]  # fmt: skip
    steps = f"{len(found.steps)} steps" if found.marked else "no step was marked: all as one"
    share = whole.busy_ns / whole.duration_ns if whole.duration_ns else 0.0
    busy = f", devices busy {100 * share:.1f}%" if whole.busy_ns else ""
    return View(heads, lines, f"{steps}, {duration(whole.duration_ns)}{busy}")


def _steps(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.steps import split_steps

    found = split_steps(data)
    names = [part.name for part in found.whole.parts if part.duration_ns]
    parts = (Head(name, max(6, len(name)), rank=at // 4) for at, name in enumerate(names))
    heads = (Head("step", 7), Head("time", 9), Head("busy", 6), *parts)
    lines = []
    for split in found.steps if found.marked else ():
        busy = split.busy_ns / split.duration_ns if split.duration_ns else 0.0
        shares = (f"{100 * split.share(name):.1f}%" for name in names)
        cells = (str(split.step), duration(split.duration_ns), f"{100 * busy:.1f}%", *shares)
        lines.append(Line(cells, step=split.step))
    return View(heads, lines, f"{len(lines)} steps: enter goes to one", "no step was marked")


def _ops(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.kernels import top_ops

    found = top_ops(data, by=by, top=_ROWS)
    on_device = any(group.device_ns for group in found)
    title = {"name": "op", "shape": "op", "module": "module", "line": "line"}[by]
    times = (Head("self", 9), Head("total", 9, rank=2))
    heads = (Head(title, 20, 2, right=False), Head("count", 7), *times, _SHARE)
    if by in ("shape", "line"):
        heads = (*heads, Head("shapes" if by == "shape" else "code", 8, 2, right=False))
    lines = []
    for group in found:
        own = group.self_device_ns if on_device else group.self_host_ns
        total = group.device_ns if on_device else group.host_ns
        cells = (safe(group.name) or "(none)", count(group.count), duration(own), duration(total),
                 bar(group.share), safe(group.detail))  # fmt: skip
        launched = f"{count(group.kernels)} kernels  " if group.kernels else ""
        detail = launched + (safe(group.detail) or safe(group.name))
        lines.append(Line(cells, _filter_of(group.name, by), detail=detail))
    where = "on the device" if on_device else "on the host"
    return View(heads, lines, f"time {where} by {by}: v groups otherwise", "no op was recorded")


def _kernels(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.kernels import top_kernels

    heads = (Head("kernel" if by == "name" else by, 24, 3, right=False),
             Head("kind", 7, right=False, rank=3), Head("count", 7), Head("time", 9), _SHARE,
             Head("mean", 9, rank=2), Head("op", 12, 1, right=False, rank=2))  # fmt: skip
    lines = [
        Line(
            (safe(k.name) or "(none)", k.kind, count(k.count), duration(k.total_ns), bar(k.share),
             duration(k.mean_ns), safe(k.op)),
            _filter_of(k.op, "name"), detail=safe(k.name),
        )
        for k in top_kernels(data, by=by, top=_ROWS)
    ]  # fmt: skip
    return View(heads, lines, f"device work by {by}: v groups otherwise", NO_DEVICE)


def _idle(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.idle import idle

    found = idle(data)
    heads = (Head("the device waited for", 24, 1, right=False), Head("time", 9), _SHARE)
    if found is None:
        return View(heads, (), empty=NO_DEVICE)
    reasons = sorted(found.reasons.items(), key=lambda item: -item[1])
    lines = [
        Line((name, duration(ns), bar(ns / max(found.idle_ns, 1)))) for name, ns in reasons if ns
    ]
    whole = found.busy_ns + found.idle_ns
    summary = f"busy {duration(found.busy_ns)}, idle {duration(found.idle_ns)} of {duration(whole)}"
    return View(heads, lines, summary, "the device was never idle")


def _memory(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.memory import memory

    heads = (Head("held at the peak by", 24, 2, right=False), Head("what", 10, right=False),
             Head("size", 10), _SHARE, Head("count", 7, rank=2))  # fmt: skip
    lines, peaks = [], []
    for device in memory(data, top=30):
        peaks.append(f"{safe(device.device)}: peak {size(device.peak_bytes)}")
        for what, holders in device.holders.items():
            if all(h.name == "(unknown)" for h in holders):
                continue
            lines += [
                Line((safe(h.name), what, size(h.size_bytes), bar(h.share), count(h.count)))
                for h in holders
            ]
    return View(heads, lines, "  ".join(peaks), "no allocation was recorded (profile=True)")


def _comm(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.comm import communication

    found = communication(data)
    heads = (Head("collective", 14, 1, right=False), Head("size", 9), Head("count", 7),
             Head("time", 9), Head("mean", 9, rank=1), Head("bus GB/s", 9, rank=2))  # fmt: skip
    if found is None:
        return View(heads, (), empty="no collective was recorded")
    lines = [
        Line((safe(g.collective), "" if g.size_bytes is None else size(g.size_bytes),
              count(g.count), duration(g.total_ns), duration(g.mean_ns),
              "" if g.bus_gbps is None else f"{g.bus_gbps:.2f}"))
        for g in found.groups
    ]  # fmt: skip
    hidden = f"{100 * found.hidden_share:.1f}% hidden behind computation"
    return View(heads, lines, f"{count(found.count)} collectives, {hidden}")


def _findings(data: ProfileData, by: str) -> View:
    from tracelens.analysis.profile.findings import profile_findings

    heads = (Head("", 1, right=False), Head("what", 16, 1, right=False),
             Head("saves at most", 13), Head("message", 30, 5, right=False))  # fmt: skip
    lines = []
    for finding in profile_findings(data):
        gain = f"{100 * finding['gain_share']:.1f}%" if finding.get("gain_ns") else ""
        bad = finding["severity"] == "warning"
        cells = ("▲" if bad else "·", safe(finding["rule"]), gain, safe(finding["message"]))
        lines.append(
            Line(cells, tone="warning" if bad else "muted", detail=safe(finding["advice"]))
        )
    return View(heads, lines, empty="nothing stands out")


def _filter_of(name: str, by: str) -> str:
    if not name or '"' in name:
        return ""
    if by == "line":
        file, _, line = name.rpartition(":")
        return f"{file.rpartition('/')[2]}:{line}"
    return f"module:{name}" if by == "module" else f'op:"{name}"'


VIEWS: dict[str, Callable[[ProfileData, str], View]] = {
    "split": _split,
    "steps": _steps,
    "ops": _ops,
    "kernels": _kernels,
    "idle": _idle,
    "memory": _memory,
    "comm": _comm,
    "findings": _findings,
}
"""Name of a view -> what makes it, in the order in which the screen goes through them."""
