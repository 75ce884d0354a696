"""Reads XPlane profiles (``*.xplane.pb``): which op ran when, where, on which thread.

Field numbers are those of XLA's ``xplane.proto``. Read are the host's lines, on which an op's
event is named ``name:type``; an eager op's has its type in the event around it. Planes of devices
hold kernels, which are counted only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tracelens.convert.protowire import fields, integer, message, signed, text

_HOST = "/host:CPU"
_ENVIRONMENT = "Task Environment"
_DEVICE = "/device:"
_EAGER = "EagerLocalExecute: "
_EAGER_KERNEL = "EagerKernelExecute"
_FUNCTIONS = ("__inference_", "__forward_", "__backward_")
_ABSOLUTE_NS = 10**15
"""Times past this are Unix times (2001 and later), others are since the profile's start."""


@dataclass(frozen=True, slots=True)
class ProfiledOp:
    """An op as it ran.

    Attributes:
        name: its name in its graph; of an eager op its type.
        op_type: its type as executed (``_MklMatMul``).
        thread: of the line it stands on.
        start_unix_ns: when it began.
        duration_ns: how long it took.
    """

    name: str
    op_type: str
    thread: int
    start_unix_ns: int
    duration_ns: int


@dataclass(slots=True)
class Profile:
    """A profile.

    Attributes:
        ops: the host's ops, line by line.
        device_events: how many events the planes of devices hold.
        warnings: what the profiler said went wrong.
    """

    ops: list[ProfiledOp] = field(default_factory=list)
    device_events: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Plane:
    name: str = ""
    lines: list[bytes] = field(default_factory=list)
    events: dict[int, tuple[str, str]] = field(default_factory=dict)
    stat_names: dict[int, str] = field(default_factory=dict)
    stats: list[bytes] = field(default_factory=list)


def read(data: bytes) -> Profile:
    """Read a profile.

    Args:
        data: a serialized ``XSpace``.

    Raises:
        WireError: it is none, or damaged.
    """
    profile = Profile()
    planes = []
    for number, value in fields(data):
        if number == 1:
            planes.append(_plane(message(value)))
        elif number in (2, 3):
            profile.warnings.append(text(value))
    start_ns = next((_start_of(p) for p in planes if p.name == _ENVIRONMENT), 0)
    for plane in planes:
        if plane.name == _HOST:
            for line in plane.lines:
                profile.ops.extend(_ops_of(line, plane, start_ns))
        elif plane.name.startswith(_DEVICE):
            profile.device_events += sum(_n_events(line) for line in plane.lines)
    return profile


def _plane(data: bytes) -> _Plane:
    plane = _Plane()
    for number, value in fields(data):
        if number == 2:
            plane.name = text(value)
        elif number == 3:
            plane.lines.append(message(value))
        elif number == 4:
            key, entry = _entry(message(value))
            names = {n: text(v) for n, v in fields(entry) if n in (2, 4)}
            plane.events[key] = names.get(2, ""), names.get(4, "")
        elif number == 5:
            key, entry = _entry(message(value))
            plane.stat_names[key] = next((text(v) for n, v in fields(entry) if n == 2), "")
        elif number == 6:
            plane.stats.append(message(value))
    return plane


def _entry(data: bytes) -> tuple[int, bytes]:
    """Return the key and value of a map's entry."""
    key, value = 0, b""
    for number, part in fields(data):
        if number == 1:
            key = signed(integer(part))
        elif number == 2:
            value = message(part)
    return key, value


def _start_of(plane: _Plane) -> int:
    for stat in plane.stats:
        parts = dict(fields(stat))
        name = plane.stat_names.get(integer(parts.get(1, 0)), "")
        if name == "profile_start_time":
            return integer(parts.get(3, parts.get(4, 0)))
    return 0


def _ops_of(data: bytes, plane: _Plane, start_ns: int) -> Iterator[ProfiledOp]:
    thread = begin_ns = 0
    events = []
    for number, value in fields(data):
        if number == 1:
            thread = integer(value) & 0x7FFFFFFF
        elif number == 3:
            begin_ns = signed(integer(value))
        elif number == 4:
            events.append(message(value))
    if begin_ns < _ABSOLUTE_NS:
        begin_ns += start_ns
    eager, eager_end_ps = "", -1
    for event in events:
        kind = offset_ps = duration_ps = 0
        for number, value in fields(event):
            if isinstance(value, int):
                if number == 1:
                    kind = signed(value)
                elif number == 2:
                    offset_ps = signed(value)
                elif number == 3:
                    duration_ps = signed(value)
        name, op_type = plane.events.get(kind, ("", ""))
        if name.startswith(_EAGER):
            eager, eager_end_ps = name[len(_EAGER) :], offset_ps + duration_ps
            continue
        if name == _EAGER_KERNEL and offset_ps < eager_end_ps:
            if eager.startswith(_FUNCTIONS):
                continue  # what it calls is there op by op
            name, op_type = eager, eager
        elif op_type and name.endswith(f":{op_type}"):
            name = name[: -len(op_type) - 1]
        else:
            continue
        yield ProfiledOp(
            name, op_type, thread, begin_ns + offset_ps // 1000, max(0, duration_ps // 1000)
        )


def _n_events(line: bytes) -> int:
    return sum(1 for number, _ in fields(line) if number == 4)
