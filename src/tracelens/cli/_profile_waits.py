"""Views of ``tracelens profile`` about waiting, memory, ranks and limits, as text for people."""

from __future__ import annotations

import argparse

from tracelens.cli._output import duration, size, table
from tracelens.cli._profile_words import NO_DEVICE, Json, more, percent, short
from tracelens.texts import printable


def idle(found: Json | None, options: argparse.Namespace) -> str:
    """Why the devices were idle."""
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
        *(
            f"  device {index}: busy {duration(ns)}, {100 * ns / max(whole, 1):.1f}% of the steps"
            for index, ns in found["devices"].items()
            if len(found["devices"]) > 1
        ),
        "",
        table(["waited for", "time", "of idle", "of steps"], body),
    ]
    if len(found["steps"]) > 1:
        names = [name for name, ns in reasons if ns]
        rows = [
            [step["step"], duration(step["idle_ns"]), percent(step["idle_ns"], step)]
            + [duration(step["reasons"][name]) for name in names]
            for step in found["steps"][: options.top]
        ]
        lines += ["", table(["step", "idle", "share", *names], rows)]
        lines += more(len(found["steps"]) - options.top, "steps")
    rows = [
        [f"{s['device']}/{s['stream']}", duration(s["host_wait_ns"]),
         duration(s["kernel_wait_ns"]), duration(s["other_ns"])]
        for s in found["streams"][: options.top]
    ]  # fmt: skip
    if rows:
        lines += ["", table(["device/stream", "host wait", "kernel wait", "other"], rows)]
    return "\n".join(lines)


def launch(found: Json | None, options: argparse.Namespace) -> str:
    """Launches, the queue, waits of the host."""
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


def memory(found: Json, options: argparse.Namespace) -> str:
    """Peaks of memory and what held them."""
    if not found["devices"]:
        return "No allocation was recorded (profile_memory=True)."
    lines: list[str] = []
    for device in found["devices"]:
        step = f" in step {device['peak_step']}" if device["peak_step"] >= 0 else ""
        lines.append(
            f"{printable(device['device'])}: peak {size(device['peak_bytes'])}{step} at "
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
                    [short(h["name"]), h["count"], size(h["size_bytes"]),
                     f"{100 * h['share']:.1f}%"]
                    for h in holders
                ]  # fmt: skip
                lines += [
                    "",
                    table([f"held at the peak, by {name}", "count", "size", "share"], rows),
                ]
        lines.append("")
    return "\n".join(lines).rstrip()


def comm(found: Json, options: argparse.Namespace) -> str:
    """Collectives, and ranks side by side."""
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
    if ranks is not None and ranks["waits"]:
        rows = [
            [w["rank"], w["calls"], duration(w["inside_ns"]), duration(w["waited_ns"]), w["last"],
             duration(w["caused_ns"])]
            for w in ranks["waits"]
        ]  # fmt: skip
        head = ["rank", "collectives", "in them", "waited", "last", "cost others"]
        lines += ["", table(head, rows)]
        lines += [f"{f['rule']}: {printable(f['message'])}" for f in ranks["findings"]]
        lines.append("tracelens ranks tells more of several ranks.")
    return "\n".join(lines)


def roofline(found: Json | None, options: argparse.Namespace) -> str:
    """Speed against the device's limits."""
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
        [g["name"], short(g["shapes"], 40), g["dtype"] or "-", g["count"],
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


def critical(found: Json | None, options: argparse.Namespace) -> str:
    """The critical path."""
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
            [short(p["name"]), p["count"] or "-", duration(p["duration_ns"]),
             percent(p["duration_ns"], found)]
            for p in found[name]
        ]  # fmt: skip
        if rows:
            lines += ["", table([head, "count", "time", "of path"], rows)]
    return "\n".join(lines)


def _place(group: Json) -> str:
    return f"{group['file']}:{group['line']}" if group["file"] else "-"


def _gbps(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
