"""Kineto's JSON as the columns of a live profile: real device events where there is no GPU."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from tracelens_torch.profile_events import _KINDS, Allocations, Events, Kind, _Numbers


def events_of(path: Path) -> Events:
    """Return the complete events of a trace."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        told = json.load(file, parse_float=str)
    rows = [event for event in told["traceEvents"] if event.get("ph") == "X" and "cat" in event]
    names, texts = _Numbers(), _Numbers()
    columns: dict[str, list[Any]] = {name: [] for name in Events.__slots__[:16]}
    for event in rows:
        args = event.get("args", {})
        kind = _KINDS.get(event["cat"].lower(), Kind.OTHER)
        on_device = kind in (Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET)
        start = _ns(event["ts"])
        external = int(args.get("External id", 0) or 0)
        corr = int(args.get("correlation", 0) or 0)
        values = {
            "kind": kind,
            "name": names.of(event["name"], lambda event=event: event["name"]),
            "start_ns": start,
            "end_ns": start + _ns(event.get("dur", 0)),
            "tid": args["stream"] if on_device else event["tid"],
            "device": args["device"] if on_device else -1,
            "corr": external if kind == Kind.OP else corr,
            "linked": 0 if kind == Kind.OP else external,
            "seq": args.get("Sequence number", -1),
            "scope": 0,
            "thread": 1,
            "fwd_thread": args.get("Fwd thread id", 0),
            "shapes": -1,
            "dtypes": -1,
            "values": -1,
            "meta": -1,
        }
        if on_device:
            meta = json.dumps(args)
            values["meta"] = texts.of(meta, lambda meta=meta: meta)
        for name, value in values.items():
            columns[name].append(value if isinstance(value, int) else _number(value))
    arrays = {name: np.array(column, dtype=np.int64) for name, column in columns.items()}
    arrays["kind"] = arrays["kind"].astype(np.uint8)
    empty = np.zeros(0, dtype=np.int64)
    nothing = Allocations(empty, empty, empty, empty, empty, empty, [], empty)
    return Events(**arrays, names=names.texts, texts=texts.texts, allocations=nothing)  # type: ignore[arg-type]


def _ns(microseconds: Any) -> int:
    whole, _, rest = str(microseconds).partition(".")
    return int(whole) * 1000 + int(rest[:3].ljust(3, "0") or 0)


def _number(value: Any) -> int:
    text = str(value)
    return int(text) if text.lstrip("-").isdigit() else abs(hash(text)) % (1 << 31)
