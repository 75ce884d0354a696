"""Reads XPlane profiles (``*.xplane.pb``): which op and kernel ran when, where, on which thread.

On a line of the host an op's event is named ``name:type``; an eager op's has its type in the event
around it. A device's plane holds its streams, and lines that other tools derived from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from tracelens.convert.xplane_wire import (
    ABSOLUTE_NS,
    DEVICE,
    HOST,
    Line,
    Plane,
    Stat,
    space,
    window,
)

EAGER = "EagerLocalExecute: "
_EAGER_KERNEL = "EagerKernelExecute"
_FUNCTIONS = ("__inference_", "__forward_", "__backward_")
_STREAM = re.compile(r"^Stream #(\d{1,18})")
_DEVICE_NUMBER = re.compile(r":(\d{1,18})$")
_SIZE = re.compile(r"\bsize:(\d{1,18})")
_DETAIL = re.compile(r"(\w+):([\w.,]+)")
_COMM = re.compile(r"nccl|rccl", re.IGNORECASE)
_COLLECTIVE = re.compile(
    r"^%?(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|"
    r"collective-broadcast|send|recv)\b"
)
"""Instructions of XLA that talk to other devices."""
_TPU_OPS, _TPU_ASYNC = "XLA Ops", "Async XLA Ops"
_INT32 = 0x7FFFFFFF
_MARKS = ("Steps", "XLA Modules", "XLA TraceMe")


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


@dataclass(frozen=True, slots=True)
class ProfiledKernel:
    """Work of a device.

    Attributes:
        name: the kernel's, or the copy's.
        kind: ``kernel``, ``comm``, ``memcpy`` or ``memset``.
        device: its number.
        stream: of the device; a TPU has one for its ops and one for its transfers.
        start_unix_ns: when it began.
        duration_ns: how long it took.
        corr_id: what the call that launched it has too; ``None`` if it is not told.
        op: the op that it belongs to, ``name:type``; of XLA the path of its source.
        hlo_op: the instruction of XLA.
        hlo_module: the program of XLA.
        size_bytes: what a copy moved.
        grid: the launch's grid, ``"8,1,1"``.
        block: the launch's block.
        occupancy: percent.
        details: what else is told.
    """

    name: str
    kind: str
    device: int
    stream: int
    start_unix_ns: int
    duration_ns: int
    corr_id: int | None = None
    op: str = ""
    hlo_op: str = ""
    hlo_module: str = ""
    size_bytes: int | None = None
    grid: str = ""
    block: str = ""
    occupancy: float | None = None
    details: dict[str, Stat] = field(default_factory=dict)


@dataclass(slots=True)
class Profile:
    """A profile.

    Attributes:
        ops: the host's ops, line by line.
        kernels: the devices' work, stream by stream.
        warnings: what the profiler said went wrong.
    """

    ops: list[ProfiledOp] = field(default_factory=list)
    kernels: list[ProfiledKernel] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def device_events(self) -> int:
        """How many kernels and copies there are."""
        return len(self.kernels)


def read(data: bytes) -> Profile:
    """Read a profile.

    Args:
        data: a serialized ``XSpace``.

    Raises:
        WireError: it is none, or damaged.
    """
    found = space(data)
    profile = Profile(warnings=found.warnings)
    start_ns = found.start_unix_ns()
    for plane in found.planes:
        if plane.name == HOST:
            for line in plane.lines():
                profile.ops.extend(_ops_of(line, plane, start_ns))
        elif plane.name.startswith(DEVICE):
            profile.kernels.extend(kernels(plane, start_ns))
    return profile


def kernels(plane: Plane, start_ns: int) -> Iterator[ProfiledKernel]:
    """Yield the work of a device's streams.

    Args:
        plane: of a device.
        start_ns: Unix time from which the profile's relative times count.

    Raises:
        WireError: an event is damaged.
    """
    device = device_number(plane.name)
    for line in plane.lines():
        stream = stream_of(line)
        if stream is None:
            continue
        begin_ns = begin_of(line, start_ns)
        shared: dict[int, dict[str, Stat]] = {}
        for event in line.decoded():
            kind = plane.kinds.get(event.kind)
            if event.kind not in shared:
                shared[event.kind] = plane.stats(kind.stats) if kind else {}
            stats = {**shared[event.kind], **plane.stats(event.stats)}
            name = (kind.display or kind.name) if kind else ""
            if kind and line.name != _TPU_OPS and line.name != _TPU_ASYNC:
                name = kind.name or kind.display
            at, end = window(begin_ns, event)
            yield _kernel(name, device, stream, at, end - at, stats, line)


def stream_of(line: Line) -> int | None:
    """Return the stream that a device's line is, ``None`` for a line that was derived.

    Examples:
        >>> stream_of(Line(9, "Stream #13(Compute)", 0, ())), stream_of(Line(9, "Steps", 0, ()))
        (13, None)
    """
    matched = _STREAM.match(line.name)
    if matched:
        return int(matched[1]) & _INT32
    return {_TPU_OPS: 0, _TPU_ASYNC: 1}.get(line.name)


def is_mark(line: Line) -> bool:
    """Tell whether a device's line holds ranges of its programs and steps."""
    return line.name in _MARKS


def device_number(plane_name: str) -> int:
    """Return a device's number.

    Examples:
        >>> device_number("/device:GPU:3"), device_number("/device:CUSTOM:Megascale Trace")
        (3, 0)
    """
    matched = _DEVICE_NUMBER.search(plane_name)
    return int(matched[1]) & _INT32 if matched else 0


def begin_of(line: Line, start_ns: int) -> int:
    """Return the Unix time that a line's offsets count from."""
    return line.time_ns if line.time_ns >= ABSOLUTE_NS else line.time_ns + start_ns


def thread_of(line: Line) -> int:
    """Return a line's number as a thread id of 31 bits."""
    return line.line_id & _INT32


def op_of(name: str, display: str) -> tuple[str, str] | None:
    """Return an op's name and type from its event's, ``None`` if the event is no op.

    Examples:
        >>> op_of("dense/MatMul:_MklMatMul", "_MklMatMul"), op_of("FunctionRun", "")
        (('dense/MatMul', '_MklMatMul'), None)
    """
    if display and name.endswith(f":{display}"):
        return name[: -len(display) - 1], display
    return None


class Eager:
    """Knows the eager op that runs on a line: its type stands in the event around it."""

    def __init__(self) -> None:
        self._name, self._end_ps = "", -1

    def enter(self, name: str, end_ps: int) -> bool:
        """Take note of an event; tell whether it was the one that names an eager op."""
        if not name.startswith(EAGER):
            return False
        self._name, self._end_ps = name[len(EAGER) :], end_ps
        return True

    def op(self, name: str, offset_ps: int) -> tuple[str, str] | None:
        """Return the eager op that an event runs; what a function calls is there op by op."""
        if name != _EAGER_KERNEL or offset_ps >= self._end_ps:
            return None
        return None if self._name.startswith(_FUNCTIONS) else (self._name, self._name)


def _ops_of(line: Line, plane: Plane, start_ns: int) -> Iterator[ProfiledOp]:
    thread, begin_ns = thread_of(line), begin_of(line, start_ns)
    eager = Eager()
    for event in line.decoded():
        kind = plane.kinds.get(event.kind)
        if kind is None or eager.enter(kind.name, event.offset_ps + event.duration_ps):
            continue
        op = eager.op(kind.name, event.offset_ps) or op_of(kind.name, kind.display)
        if op is not None:
            at = begin_ns + event.offset_ps // 1000
            yield ProfiledOp(*op, thread, at, event.duration_ps // 1000)


def _kernel(
    name: str,
    device: int,
    stream: int,
    start_ns: int,
    duration_ns: int,
    stats: dict[str, Stat],
    line: Line,
) -> ProfiledKernel:
    details = _details(_text(stats.pop("kernel_details", "")))
    copied = _text(stats.pop("memcpy_details", stats.pop("memset_details", "")))
    size = _SIZE.search(copied)
    corr = stats.pop("correlation_id", None)
    occupancy = details.get("occ_pct")
    if copied:
        stats["copy"] = copied
    return ProfiledKernel(
        name,
        _kind(name, line.name),
        device,
        stream,
        start_ns,
        duration_ns,
        corr if isinstance(corr, int) and corr < 1 << 63 else None,
        _text(stats.pop("tf_op", "")),
        _text(stats.pop("hlo_op", "")),
        _text(stats.pop("hlo_module", "")),
        min(int(size[1]), 1 << 62) if size else None,
        details.get("grid", ""),
        details.get("block", ""),
        _number(occupancy),
        stats,
    )


@lru_cache(4096)
def _details(text: str) -> dict[str, str]:
    return dict(_DETAIL.findall(text))


@lru_cache(4096)
def _kind(name: str, line_name: str) -> str:
    lower = name.lower()
    if _COMM.search(name) or _COLLECTIVE.match(name):
        return "comm"
    if lower.startswith("memcpy") or (line_name == _TPU_ASYNC and "copy" in lower):
        return "memcpy"
    return "memset" if lower.startswith("memset") else "kernel"


def _text(value: Stat) -> str:
    return value if isinstance(value, str) else ""


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
