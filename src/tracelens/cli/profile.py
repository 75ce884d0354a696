"""``tracelens profile``: where the time and the memory of a trace went."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracelens.cli._command import Command, add_json, add_trace
from tracelens.cli._output import print_json, print_text
from tracelens.cli._steps import step_range
from tracelens.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from tracelens.analysis.profile.data import ProfileData
    from tracelens.analysis.profile.devices import DeviceLimits
    from tracelens.analysis.ranks import RankReport
    from tracelens.storage.reader import TraceReader

VIEWS = (
    "overview",
    "steps",
    "idle",
    "kernels",
    "ops",
    "tree",
    "launch",
    "memory",
    "comm",
    "roofline",
    "critical",
    "flame",
    "findings",
)


class Profile(Command):
    """Show where the time went: steps, kernels, ops, waits, memory, communication.

    Views: overview (default); steps: what each step's time went to; idle: what the device waited
    for; kernels, ops: the longest, grouped with --by; tree: ops and the kernels they launched;
    launch: launches, queue, waits of the host; memory: peak and what held it; comm: collectives,
    bandwidth, ranks waited for; roofline: speed against the device's limits; critical: the critical
    path; flame: folded stacks; findings: advice and what it could save. See docs/profiling.md.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the trace, the view and what it is narrowed to."""
        add_trace(parser)
        parser.add_argument(
            "view", nargs="?", choices=VIEWS, default="overview", metavar="VIEW",
            help="what to show (default: overview)",
        )  # fmt: skip
        parser.add_argument("--rank", type=int, metavar="N", help="whose (default: the lowest)")
        parser.add_argument("--steps", metavar="A:B", help="only steps A to B, B not included")
        parser.add_argument(
            "--top", type=int, default=15, metavar="N", help="rows at most (default: %(default)s)"
        )
        parser.add_argument(
            "--by", choices=("name", "shape", "module", "line"), default="name",
            help="what kernels, ops and the tree are grouped by (default: %(default)s)",
        )  # fmt: skip
        parser.add_argument(
            "--side", choices=("host", "device"), help="flame: whose stacks (default: both)"
        )
        parser.add_argument("--device", metavar="NAME", help="roofline: a known device ('H100')")
        parser.add_argument(
            "--peak-tflops", type=float, metavar="X", help="roofline: the device's peak, TFLOP/s"
        )
        parser.add_argument(
            "--bandwidth", type=float, metavar="X", help="roofline: its memory bandwidth, GB/s"
        )
        add_json(parser)

    def parse(
        self, parser: argparse.ArgumentParser, arguments: Sequence[str]
    ) -> argparse.Namespace:
        """Refuse limits that make no sense."""
        options = parser.parse_args(arguments)
        if options.top < 1:
            parser.error("--top must be above 0")
        return options

    def run(self, options: argparse.Namespace) -> int:
        """Print the view."""
        from tracelens.analysis.profile.data import load_profile
        from tracelens.storage.reader import open_trace

        steps = step_range(options.steps)
        with open_trace(options.trace) as reader:
            data = load_profile(reader, _rank(reader, options.rank), steps)
            _check_steps(data)
            is_empty = not _rows(data) and not len(data.memory) and not len(data.counters)
            found = _VIEWS[options.view](data, options)
        if options.json:
            print_json(found)
        else:
            from tracelens.cli._profile_text import NOTHING, render

            # Collectives are compared across ranks without a profile, too.
            told = options.view == "comm" or not is_empty
            print_text(render(options.view, found, options) if told else NOTHING)
        return EXIT_OK


def _rank(reader: TraceReader, wanted: int | None) -> int | None:
    ranks = reader.ranks()
    if wanted is not None and wanted not in ranks:
        known = ", ".join(map(str, ranks[:20])) or "none"
        raise ConfigError(f"the trace has no rank {wanted}; it has {known}")
    return wanted


def _rows(data: ProfileData) -> int:
    return sum(len(rows) for rows in (data.kernels, data.ops, data.spans, data.samples))


def _check_steps(data: ProfileData) -> None:
    """Refuse a choice of steps in which nothing was profiled, where others were."""
    from tracelens.analysis.profile.data import load_profile

    if data.selected is None or _rows(data):
        return
    whole = load_profile(data.reader, data.rank)
    if not _rows(whole) or not whole.steps.marked:
        return
    known = whole.steps.step.tolist()
    shown = ", ".join(map(str, known[:20])) + (" ..." if known[20:] else "")
    raise ConfigError(f"nothing of these steps was profiled; profiled are {shown}")


def _across_ranks(data: ProfileData, top: int) -> RankReport | None:
    """Return what only several ranks together tell; ``None`` of a trace of one."""
    if len(data.reader.ranks()) < 2:
        return None
    from tracelens.analysis.ranks import analyse
    from tracelens.engines import open_engine

    with open_engine(str(data.reader.path), "duckdb") as engine:
        return analyse(engine, top=top)


def _limits(data: ProfileData, options: argparse.Namespace) -> DeviceLimits | None:
    from tracelens.analysis.profile.devices import given_limits, recorded_limits

    given = given_limits(options.device, options.peak_tflops, options.bandwidth)
    return given if given is not None else recorded_limits(data)


def _overview(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.overview import profile_overview

    top = min(options.top, 5)
    return profile_overview(data, top=top, limits=_limits(data, options))


def _steps(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.retrace import retraces
    from tracelens.analysis.profile.steps import split_steps

    compiled = retraces(data)
    return {
        **split_steps(data).as_json(),
        "aligned": split_steps(data, windows="device").whole.as_json(),
        "retraces": compiled.as_json() if compiled is not None else None,
    }


def _idle(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.idle import idle

    return _json(idle(data))


def _kernels(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.kernels import top_kernels

    found = top_kernels(data, by=options.by, top=options.top)
    return {"by": options.by, "kernels": [group.as_json() for group in found]}


def _ops(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.kernels import top_ops

    found = top_ops(data, by=options.by, top=options.top)
    return {"by": options.by, "ops": [group.as_json() for group in found]}


def _tree(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.optree import op_tree

    return op_tree(data, by=options.by).as_json()


def _launch(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.launch import launches, sync_stalls

    waits = [group.as_json() for group in sync_stalls(data, top=options.top)]
    found = launches(data)
    if found is None:
        return None
    return {**found.as_json(), "launch_bound": found.launch_bound, "syncs": waits}


def _memory(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.memory import memory

    return {"devices": [answer.as_json() for answer in memory(data, top=options.top)]}


def _comm(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.comm import communication

    report = _across_ranks(data, options.top)
    found = None
    if report is not None:
        plain = report.as_json()
        found = {name: plain[name] for name in ("waits", "steps", "findings")}
    return {"rank": _json(communication(data)), "ranks": found}


def _roofline(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.roofline import roofline

    found = _json(roofline(data, _limits(data, options)))
    if found is not None:
        found["groups"] = found["groups"][: options.top]
    return found


def _critical(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.critical import critical_path

    return _json(critical_path(data, top=options.top))


def _flame(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.flame import device_flame, host_flame

    makers = {"host": host_flame, "device": device_flame}
    return {
        side: _json(make(data)) for side, make in makers.items() if options.side in (None, side)
    }


def _findings(data: ProfileData, options: argparse.Namespace) -> Any:
    from tracelens.analysis.profile.findings import profile_findings

    found = profile_findings(data, limits=_limits(data, options))
    report = _across_ranks(data, options.top)
    if report is not None:
        found += report.findings
    found.sort(key=lambda f: (f["severity"] != "error", -(f.get("gain_share") or 0)))
    return {"findings": found[: options.top]}


def _json(answer: Any) -> Any:
    return None if answer is None else answer.as_json()


_VIEWS: dict[str, Callable[[ProfileData, argparse.Namespace], Any]] = {
    "overview": _overview,
    "steps": _steps,
    "idle": _idle,
    "kernels": _kernels,
    "ops": _ops,
    "tree": _tree,
    "launch": _launch,
    "memory": _memory,
    "comm": _comm,
    "roofline": _roofline,
    "critical": _critical,
    "flame": _flame,
    "findings": _findings,
}
