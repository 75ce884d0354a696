"""The views of ``tracelens profile`` as text for people."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tracelens.cli._output import duration, size, table
from tracelens.texts import printable

Json = dict[str, Any]

NO_DEVICE = "No device work was recorded: the program ran on the CPU, or its device was not traced."
_NAME_WIDTH = 70


def render(view: str, found: Any, options: argparse.Namespace) -> str:
    """Return a view as text; what has nothing to show says why, in one line."""
    return _RENDER[view](found, options)


def _overview(found: Json, options: argparse.Namespace) -> str:
    rows, steps = found["rows"], found["steps"]
    counted = ", ".join(f"{n} {name}" for name, n in rows.items() if n)
    if not counted:
        return "Nothing of a profile was recorded: import one, or record with profile=True."
    lines = [f"rank {found['rank']}: {counted}"]
    if found["device"]:
        lines += [_device(line) for line in found["device"]]
    else:
        lines.append(NO_DEVICE)
    if steps["count"]:
        lines.append(f"steps   {steps['count']}, median {duration(steps['median_ns'])}")
    lines += ["", _split_table(steps["whole"])]
    if found["kernels"]:
        lines += ["", _kernel_table(found["kernels"])]
    if found["ops"]:
        lines += ["", _op_table(found["ops"])]
    for peak in found["memory"]:
        lines += ["", f"memory  {peak['device']}: peak {size(peak['peak_bytes'])}"]
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
    lines.append(_split_table(found["whole"], found["aligned"]))
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
                [step["step"], duration(step["duration_ns"]), _percent(step["busy_ns"], step)]
                + [_percent(parts[name], step) for name in names]
            )
        lines += ["", table(["step", "time", "busy", *names], rows)]
        lines += _more(len(found["steps"]) - len(shown), "steps")
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
                   _percent(part["duration_ns"], split)]  # fmt: skip
            if aligned is not None:
                row.append(_percent(aligned["parts"][at]["duration_ns"], aligned))
            sides = (part["device_ns"], part["host_ns"], part["hidden_ns"])
            body.append([*row, *map(duration, sides)])
    head = ["what ran", "time", "share", *(["aligned"] if aligned is not None else [])]
    return table([*head, "on device", "host only", "hidden"], body)


def _idle(found: Json | None, options: argparse.Namespace) -> str:
    if found is None:
        return NO_DEVICE
    whole = found["idle_ns"] + found["busy_ns"]
    reasons = sorted(found["reasons"].items(), key=lambda item: -item[1])
    body = [
        [name, duration(ns), f"{100 * ns / max(found['idle_ns'], 1):.1f}%",
         f"{100 * ns / max(whole, 1):.1f}%"]
        for name, ns in reasons if ns
    ]  # fmt: skip
    lines = [
        f"busy {duration(found['busy_ns'])}, idle {duration(found['idle_ns'])} of "
        f"{duration(whole)}",
        "",
        table(["waited for", "time", "of idle", "of steps"], body),
    ]
    if len(found["steps"]) > 1:
        names = [name for name, ns in reasons if ns]
        rows = [
            [step["step"], duration(step["idle_ns"]), _percent(step["idle_ns"], step)]
            + [duration(step["reasons"][name]) for name in names]
            for step in found["steps"][: options.top]
        ]
        lines += ["", table(["step", "idle", "share", *names], rows)]
        lines += _more(len(found["steps"]) - options.top, "steps")
    rows = [
        [f"{s['device']}/{s['stream']}", duration(s["host_wait_ns"]),
         duration(s["kernel_wait_ns"]), duration(s["other_ns"])]
        for s in found["streams"][: options.top]
    ]  # fmt: skip
    if rows:
        lines += ["", table(["device/stream", "host wait", "kernel wait", "other"], rows)]
    return "\n".join(lines)


def _kernels(found: Json, options: argparse.Namespace) -> str:
    return _kernel_table(found["kernels"], found["by"]) if found["kernels"] else NO_DEVICE


def _kernel_table(kernels: list[Json], by: str = "name") -> str:
    body = [
        [_short(k["name"] or "(none)"), k["kind"], k["count"], duration(k["total_ns"]),
         f"{100 * k['share']:.1f}%", duration(k["mean_ns"]), _short(k["op"], 30)]
        for k in kernels
    ]  # fmt: skip
    head = "kernel" if by == "name" else by
    return table([head, "kind", "count", "time", "share", "mean", "op"], body)


def _ops(found: Json, options: argparse.Namespace) -> str:
    if not found["ops"]:
        return "No op was recorded."
    if found["by"] in ("module", "line") and all(not op["name"] for op in found["ops"]):
        return f"No op's {found['by']} was recorded (with_stack=True, with_modules=True)."
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
        row = [_short(op["name"] or "(none)"), op["count"]]
        if with_device:
            row += [duration(op["self_device_ns"]), duration(op["device_ns"]), share]
        row += [duration(op["self_host_ns"]), duration(op["host_ns"])]
        row += [] if with_device else [share]
        body.append(row + ([_short(op["detail"])] if detail else []))
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
        name = _short("  " * depth + mark + entry["name"], 80)
        body.append([name, entry["count"], duration(entry["device_ns"]), host])
        if depth < 12:
            _branches(entry["children"], depth + 1, top, body)


def _launch(found: Json | None, options: argparse.Namespace) -> str:
    if found is None:
        return NO_DEVICE
    if not found["linked"]:
        return f"Of {found['unlinked']} pieces of device work no launch was recorded."
    lines = [
        f"launches        {found['launches']} calls, {duration(found['host_ns'])} of the host; "
        f"{found['unlinked']} pieces of work without a known launch",
        f"launch delay    mean {duration(found['mean_delay_ns'])}, median "
        f"{duration(found['median_delay_ns'])}, {found['long_delays']} above 100 µs",
        f"queue           at most {found['max_queue']}, mean {found['mean_queue']:.1f}",
        f"starved         {found['starved']} pieces of work found an empty stream "
        f"({100 * found['starved_share']:.1f}%)"
        + (": launch-bound" if found["launch_bound"] else ""),
        f"short kernels   {found['short']} below 10 µs ({100 * found['short_share']:.1f}%), "
        f"{duration(found['short_ns'])}",
    ]
    if found["syncs"]:
        rows = [
            [s["call"], s["op"] or "-", _place(s), s["count"], duration(s["total_ns"]),
             duration(s["drained_ns"])]
            for s in found["syncs"]
        ]  # fmt: skip
        head = ["waits of the host", "op", "line", "count", "host time", "device without work"]
        lines += ["", table(head, rows)]
    return "\n".join(lines)


def _memory(found: Json, options: argparse.Namespace) -> str:
    if not found["devices"]:
        return "No allocation was recorded (profile_memory=True)."
    lines: list[str] = []
    for device in found["devices"]:
        step = f" in step {device['peak_step']}" if device["peak_step"] >= 0 else ""
        lines.append(
            f"{device['device']}: peak {size(device['peak_bytes'])}{step} at "
            f"{duration(device['peak_ns'])}; {size(device['end_bytes'])} at the end; "
            f"{device['allocations']} allocations, {device['frees']} frees"
        )
        if device["reserved_bytes"]:
            lines.append(
                f"  reserved {size(device['reserved_bytes'])} then"
                + (f", {100 * device['fragmentation']:.1f}% of it not in use"
                   if device["fragmentation"] is not None else "")
            )  # fmt: skip
        for name, holders in device["holders"].items():
            if any(not h["name"].startswith("(") for h in holders):
                rows = [
                    [_short(h["name"]), h["count"], size(h["size_bytes"]),
                     f"{100 * h['share']:.1f}%"]
                    for h in holders
                ]  # fmt: skip
                lines += [
                    "",
                    table([f"held at the peak, by {name}", "count", "size", "share"], rows),
                ]
        lines.append("")
    return "\n".join(lines).rstrip()


def _comm(found: Json, options: argparse.Namespace) -> str:
    rank, ranks = found["rank"], found["ranks"]
    if rank is None:
        return "No collective was recorded: one process, or its communication was not traced."
    rows = [
        [g["collective"], g["group"] or "-", g["ranks"], g["dtype"] or "-", size(g["size_bytes"]),
         g["count"], duration(g["total_ns"]), duration(g["mean_ns"]), _gbps(g["algorithm_gbps"]),
         _gbps(g["bus_gbps"])]
        for g in rank["groups"][: options.top]
    ]  # fmt: skip
    head = ["collective", "group", "ranks", "dtype", "size", "count", "time", "mean",
            "algorithm GB/s", "bus GB/s"]  # fmt: skip
    lines = [
        f"{rank['count']} collectives on the {rank['where']}, {duration(rank['total_ns'])}, "
        f"{duration(rank['exposed_ns'])} of it exposed "
        f"({100 * rank['hidden_share']:.1f}% hidden)",
        "",
        table(head, rows),
    ]
    if ranks is not None:
        rows = [
            [r["rank"], r["steps"], duration(r["step_ns"]), duration(r["comm_ns"]),
             duration(r["wait_ns"]), r["last"]]
            for r in ranks["ranks"]
        ]  # fmt: skip
        lines += ["", table(["rank", "steps", "step", "communication", "waited", "last"], rows)]
        if ranks["straggler"] is not None:
            lines.append(
                f"straggler: rank {ranks['straggler']}; the others waited "
                f"{duration(ranks['waited_ns'])} for it ({100 * ranks['waited_share']:.1f}%)"
            )
    return "\n".join(lines)


def _roofline(found: Json | None, options: argparse.Namespace) -> str:
    if found is None or not found["groups"]:
        missing = found["without_shapes"] if found else 0
        return (
            f"The shapes of {missing} ops were not recorded (record_shapes=True)."
            if missing
            else "No op with known FLOP or bytes took any time."
        )
    limits = found["limits"]
    lines = [
        f"{found['flops'] / 1e12:.3f} TFLOP in {duration(found['covered_ns'])}: "
        f"{found['tflops']:.1f} TFLOP/s; ops with a formula take "
        f"{100 * found['covered_ns'] / max(found['total_ns'], 1):.1f}% of the time",
        f"limits: {limits['name']} ({limits['source']}), memory {limits['bandwidth_gbps']} GB/s"
        if limits
        else "limits: not known; give --device NAME, or --peak-tflops and --bandwidth",
    ]
    rows = [
        [g["name"], _short(g["shapes"], 40), g["dtype"] or "-", g["count"],
         duration(g["total_ns"]), f"{g['flops'] / 1e9:.3f}", f"{g['tflops']:.1f}",
         f"{g['bandwidth_gbps']:.0f}", g["bound"] or "-",
         "-" if g["roof_share"] is None else f"{100 * g['roof_share']:.1f}%"]
        for g in found["groups"]
    ]  # fmt: skip
    head = [
        "op",
        "shapes",
        "dtype",
        "count",
        "time",
        "GFLOP",
        "TFLOP/s",
        "GB/s",
        "bound",
        "of roof",
    ]
    return "\n".join([*lines, "", table(head, rows)])


def _critical(found: Json | None, options: argparse.Namespace) -> str:
    if found is None:
        return "No op, span or kernel was recorded, so that there is no path."
    lines = [
        f"critical path {duration(found['duration_ns'])}: device {duration(found['device_ns'])}, "
        f"host {duration(found['host_ns'])}, delay {duration(found['delay_ns'])}: "
        f"bound by the {found['bound_by']}"
    ]
    heads = {"kernels": "kernels on it", "host": "host on it", "ops": "ops on it (own time)"}
    for name, head in heads.items():
        rows = [
            [_short(p["name"]), p["count"] or "-", duration(p["duration_ns"]),
             _percent(p["duration_ns"], found)]
            for p in found[name]
        ]  # fmt: skip
        if rows:
            lines += ["", table([head, "count", "time", "of path"], rows)]
    return "\n".join(lines)


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
        if finding["gain_ns"]:
            gain = f"  saves at most {100 * finding['gain_share']:.1f}%"
        lines += [
            f"{finding['severity']}  {finding['rule']}{gain}",
            f"  {printable(finding['message'])}",
            f"  advice: {printable(finding['advice'])}",
        ]
    return "\n".join(lines)


def _percent(part_ns: int, whole: Json) -> str:
    return f"{100 * part_ns / max(whole['duration_ns'], 1):.2f}%"


def _short(text: str, width: int = _NAME_WIDTH) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _place(group: Json) -> str:
    return f"{group['file']}:{group['line']}" if group["file"] else "-"


def _gbps(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _more(left: int, what: str) -> list[str]:
    return [f"... {left} more {what}; --top shows more"] if left > 0 else []


_RENDER: dict[str, Callable[[Any, argparse.Namespace], str]] = {
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
