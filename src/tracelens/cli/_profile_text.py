"""The views of ``tracelens profile`` as text for people."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tracelens.cli import _profile_waits as waits
from tracelens.cli._output import duration, size, table
from tracelens.cli._profile_words import NO_DEVICE, Json, more, percent, short
from tracelens.texts import printable


def render(view: str, found: Any, options: argparse.Namespace) -> str:
    """Return a view as text; what has nothing to show says why, in one line."""
    return _RENDER[view](found, options)


NOTHING = "Nothing of a profile was recorded: import one, or record with profile=True."


def _overview(found: Json, options: argparse.Namespace) -> str:
    rows, steps = found["rows"], found["steps"]
    counted = ", ".join(f"{n} {name}" for name, n in rows.items() if n)
    if not counted:
        return NOTHING
    lines = [f"rank {found['rank']}: {counted}"]
    if len(found["ranks"]) > 1:
        lines.append(f"        one of {len(found['ranks'])} ranks: tracelens ranks compares them")
    if found["device"]:
        lines += [_device(line) for line in found["device"]]
    else:
        lines.append(NO_DEVICE)
    if steps["count"]:
        lines.append(f"steps   {steps['count']}, median {duration(steps['median_ns'])}")
    odd = steps["count"] - steps["typical_count"] if steps["count"] else 0
    if odd:
        lines.append(f"        {odd} of them more than twice as long, left out of this table")
    lines += ["", _split_table(steps["typical"])]
    if found["kernels"]:
        lines += ["", _kernel_table(found["kernels"])]
    if found["ops"]:
        lines += ["", _op_table(found["ops"])]
    for peak in found["memory"]:
        lines += ["", f"memory  {printable(peak['device'])}: peak {size(peak['peak_bytes'])}"]
    lines += ["", _findings(found, options)]
    return "\n".join(lines)


def _device(line: Json) -> str:
    who = "device" if line["device"] is None else f"  gpu {line['device']}"
    share = 100 * line["idle_ns"] / line["span_ns"] if line["span_ns"] else 0.0
    text = (
        f"{who}  {line['kernels']} kernels on {line['streams']} streams in "
        f"{duration(line['span_ns'])}: busy {duration(line['busy_ns'])}, idle {share:.2f}%"
    )
    if line["comm_ns"]:
        text += (
            f", communication {duration(line['comm_ns'])} "
            f"({duration(line['exposed_comm_ns'])} exposed)"
        )
    return text


def _steps(found: Json, options: argparse.Namespace) -> str:
    if not found["whole"]["duration_ns"]:
        return "No op, span or kernel was recorded, so that no time can be split."
    lines = [] if found["marked"] else ["No step was marked: the whole trace is taken as one."]
    if not found["has_device"]:
        lines.append(NO_DEVICE)
    lines.append(_split_table(found["whole"], found["aligned"] if found["has_device"] else None))
    if found["has_device"] and found["marked"]:
        lines.append(
            "aligned: with each step ending when its last kernel does, as torch_tb_profiler counts"
        )
    if found["marked"]:
        shown = found["steps"][: options.top]
        names = [part["name"] for part in found["whole"]["parts"] if part["duration_ns"]]
        rows = []
        for step in shown:
            parts = {part["name"]: part["duration_ns"] for part in step["parts"]}
            rows.append(
                [step["step"], duration(step["duration_ns"]), percent(step["busy_ns"], step)]
                + [percent(parts[name], step) for name in names]
            )
        lines += ["", table(["step", "time", "busy", *names], rows)]
        lines += more(len(found["steps"]) - len(shown), "steps")
    compiled = found["retraces"]
    if compiled:
        lines += [
            "",
            f"tracing and compiling: {duration(compiled['compile_ns'])} recorded, "
            f"{compiled['retraces']} retraces, cost {duration(compiled['cost_ns'])}",
        ]
    return "\n".join(lines)


def _split_table(split: Json, aligned: Json | None = None) -> str:
    body = []
    for at, part in enumerate(split["parts"]):
        if part["total_ns"]:
            row = [part["name"], duration(part["duration_ns"]),
                   percent(part["duration_ns"], split)]  # fmt: skip
            if aligned is not None:
                row.append(percent(aligned["parts"][at]["duration_ns"], aligned))
            sides = (part["device_ns"], part["host_ns"], part["hidden_ns"])
            body.append([*row, *map(duration, sides)])
    head = ["what ran", "time", "share", *(["aligned"] if aligned is not None else [])]
    return table([*head, "on device", "host only", "hidden"], body)


def _kernels(found: Json, options: argparse.Namespace) -> str:
    return _kernel_table(found["kernels"], found["by"]) if found["kernels"] else NO_DEVICE


def _kernel_table(kernels: list[Json], by: str = "name") -> str:
    told = any(k["occupancy"] is not None for k in kernels)
    body = [
        [short(k["name"] or "(none)"), k["kind"], k["count"], duration(k["total_ns"]),
         f"{100 * k['share']:.1f}%", duration(k["mean_ns"]),
         *([k["occupancy"]] if told else []), short(k["op"], 30)]
        for k in kernels
    ]  # fmt: skip
    head = ["kernel" if by == "name" else by, "kind", "count", "time", "share", "mean"]
    return table([*head, *(["occupancy %"] if told else []), "op"], body)


def _ops(found: Json, options: argparse.Namespace) -> str:
    if not found["ops"]:
        return "No op was recorded."
    if found["by"] in ("module", "line") and all(not op["name"] for op in found["ops"]):
        return (
            f"No op's {found['by']} was recorded (torch.profiler: with_stack=True,"
            " with_modules=True; TensorFlow: capture='ops')."
        )
    return _op_table(found["ops"], found["by"])


def _op_table(ops: list[Json], by: str = "name") -> str:
    with_device = any(op["device_ns"] for op in ops)
    head = ["op" if by in ("name", "shape") else by, "count"]
    head += ["self device", "device", "share"] if with_device else []
    head += ["self host", "host"] + ([] if with_device else ["share"])
    detail = any(op["detail"] for op in ops)
    body = []
    for op in ops:
        share = f"{100 * op['share']:.1f}%"
        row = [short(op["name"] or "(none)"), op["count"]]
        if with_device:
            row += [duration(op["self_device_ns"]), duration(op["device_ns"]), share]
        row += [duration(op["self_host_ns"]), duration(op["host_ns"])]
        row += [] if with_device else [share]
        body.append(row + ([short(op["detail"])] if detail else []))
    return table(head + (["shapes" if by == "shape" else "code"] if detail else []), body)


def _tree(found: Json, options: argparse.Namespace) -> str:
    if not found["children"]:
        return "No op and no device work was recorded."
    body: list[list[Any]] = []
    _branches(found["children"], 0, options.top, body)
    return table(["op / kernel", "count", "device", "host"], body)


def _branches(entries: list[Json], depth: int, top: int, body: list[list[Any]]) -> None:
    """Show the largest entries of each level, fewer the deeper, and only what has some weight."""
    for entry in entries[: max(top >> depth, 3)]:
        mark = {"kernel": "▸ ", "module": "◦ "}.get(entry["kind"], "")
        host = duration(entry["host_ns"]) if entry["kind"] != "kernel" else "-"
        name = short("  " * depth + mark + entry["name"], 80)
        body.append([name, entry["count"], duration(entry["device_ns"]), host])
        if depth < 12:
            _branches(entry["children"], depth + 1, top, body)


def _flame(found: Json, options: argparse.Namespace) -> str:
    """Folded stacks, one a line: what flamegraph.pl and speedscope read."""
    lines = []
    for side, answer in found.items():
        for stack, ns in answer["stacks"] if answer is not None else ():
            frames = [frame.replace(";", ",").replace("\n", " ") for frame in stack]
            lines.append(printable(";".join([side, *frames] if len(found) > 1 else frames))
                         + f" {ns}")  # fmt: skip
    return "\n".join(lines) or "No sample, Python frame, op or device work was recorded."


def _findings(found: Json, options: argparse.Namespace) -> str:
    if not found["findings"]:
        return "Nothing stands out: no finding."
    lines = []
    for finding in found["findings"][: options.top]:
        gain = ""
        if finding.get("gain_ns") and finding.get("gain_share"):
            gain = f"  saves at most {100 * finding['gain_share']:.1f}%"
        lines += [
            f"{finding['severity']}  {finding['rule']}{gain}",
            f"  {printable(finding['message'])}",
            f"  advice: {printable(finding['advice'])}",
        ]
        if finding.get("view"):
            lines.append(f"  more: tracelens profile TRACE {finding['view']}")
    return "\n".join(lines)


_RENDER: dict[str, Callable[[Any, argparse.Namespace], str]] = {
    "overview": _overview,
    "steps": _steps,
    "idle": waits.idle,
    "kernels": _kernels,
    "ops": _ops,
    "tree": _tree,
    "launch": waits.launch,
    "memory": waits.memory,
    "comm": waits.comm,
    "roofline": waits.roofline,
    "critical": waits.critical,
    "flame": _flame,
    "findings": _findings,
}
