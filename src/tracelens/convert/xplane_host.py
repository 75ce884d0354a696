"""One host's XPlane profile as rows of the tables: ops, spans, kernels, memory, steps.

A kernel finds its launch by its correlation id, and its op as the op around that launch; where no
op is around it on its thread (XLA launches from threads of its own), as the op of its name
that ran when it was launched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.convert._columns import UNNAMED, Rows, step_of
from tracelens.convert._hosttables import HostTables, op_rows, span_rows
from tracelens.convert.protowire import WireError
from tracelens.convert.xplane_kernels import KernelRows
from tracelens.convert.xplane_links import told, without_containers
from tracelens.convert.xplane_profile import (
    Eager,
    ProfiledKernel,
    begin_of,
    device_number,
    is_mark,
    kernels,
    op_of,
    thread_of,
)
from tracelens.convert.xplane_wire import (
    DEVICE,
    HOST,
    HOST_CUPTI,
    Kind,
    Line,
    Plane,
    Space,
    Stat,
    window,
)

if TYPE_CHECKING:
    from tracelens.storage.bulk import BulkShard

BACKWARD = re.compile(r"(?:^|/)(?:gradient_tape|gradients(?:_\d+)?)/")
UPDATE = re.compile(r"^(Resource(Sparse)?Apply|Assign(Add|Sub)?VariableOp$)")
_DATA_OP = re.compile(r"^(IteratorGetNext|OneShotIterator|MakeIterator)")
_RUNTIME = re.compile(r"^(cu|cuda|hip)[A-Z]\w+$")
_PYTHON = re.compile(r"^\$(?:(?P<file>.+):(?P<line>\d{1,9}) )?(?P<function>.+)$")
_ITERATOR = re.compile(r"^Iterator::[^:]+(::[^:]+)?$")
_GET_NEXT = "IteratorGetNextOp::DoCompute"
_QUEUE = "ThreadpoolListener::"
_ALLOCATE, _FREE = "MemoryAllocation", "MemoryDeallocation"
_DATA_THREAD = "tf_data"
_TPU = "/device:TPU"
_PHASES = ["data", "forward", "backward", "optimizer", "other"]


@dataclass(frozen=True, slots=True)
class Made:
    """What was written of a host.

    Attributes:
        ops: rows of ops.
        kernels: rows of kernels.
        steps: steps.
    """

    ops: int
    kernels: int
    steps: int


class HostRows:
    """The rows of one host.

    Args:
        space: its profile.
        epoch_ns: Unix time of time 0 of the trace.
        problems: told what is damaged.
    """

    def __init__(self, space: Space, epoch_ns: int, problems: list[str]) -> None:
        self._space = space
        self._epoch_ns = epoch_ns
        self._problems = problems
        self._start_ns = space.start_unix_ns()
        self._ops = op_rows()
        self._spans = span_rows()
        self._kernels = KernelRows(epoch_ns)
        self._memory = Rows(
            ("t_ns", "size_bytes", "address", "allocated_bytes", "reserved_bytes"),
            ("device",),
        )
        self._steps: dict[int, dict[str, int]] = {}
        self._device_steps: dict[int, dict[str, int]] = {}
        self._again = 0

    def write(self, shard: BulkShard) -> Made:
        """Read the planes and write their rows."""
        for plane in self._space.planes:
            if plane.name.startswith(DEVICE):
                self._guard(plane, self._device)
        for plane in self._space.planes:
            if plane.name in (HOST, HOST_CUPTI):
                self._guard(plane, self._host)
        if "backward" in self._ops.texts("phase"):
            self._ops.rename("phase", "other", "forward")
        if self._again:
            self._problems.append(
                f"{self._again} marks repeat the number of a step, and are kept as ranges only"
            )
        steps = sorted(
            (self._steps or self._device_steps).values(), key=lambda each: each["start_ns"]
        )
        for each in steps:
            shard.event("step", **each)
        tables = HostTables(self._ops, self._spans, steps)
        tables.write(shard)
        self._kernels.write(shard, steps, tables, self._ops)
        self._write_memory(shard, steps)
        return Made(len(self._ops), len(self._kernels), len(steps))

    def _guard(self, plane: Plane, take: Any) -> None:
        """Take a plane; what is damaged in it is told, and the rest kept."""
        try:
            take(plane)
        except WireError as error:
            self._problems.append(f"{plane.name}: damaged, its rest is left out: {error}")

    # A device.

    def _device(self, plane: Plane) -> None:
        device = device_number(plane.name)
        found: Iterable[ProfiledKernel] = kernels(plane, self._start_ns)
        if plane.name.startswith(_TPU):
            found, around = without_containers(list(found))
            for each in around:
                end_ns = each.start_unix_ns + each.duration_ns
                self._span(
                    device, each.stream, each.start_unix_ns, end_ns, "device_annotation", each.name
                )
        for kernel in found:
            self._kernels.add(kernel)
        for line in plane.lines():
            if is_mark(line):
                self._marks(plane, line, device)

    def _marks(self, plane: Plane, line: Line, device: int) -> None:
        begin_ns = begin_of(line, self._start_ns)
        for event in line.decoded():
            name = plane.kinds.get(event.kind, Kind()).name
            start, end = window(begin_ns, event)
            self._span(device, line.line_id, start, end, "device_annotation", name)
            if line.name == "Steps" and name.isdigit() and len(name) < 19:
                self._step_of_device(int(name), start, end)

    # The host.

    def _host(self, plane: Plane) -> None:
        for line in plane.lines():
            thread, begin_ns = thread_of(line), begin_of(line, self._start_ns)
            eager = Eager()
            data = line.name.startswith(_DATA_THREAD)
            loaded_ps = -1
            for event in line.nested():
                kind = plane.kinds.get(event.kind)
                if kind is None or kind.name.startswith(_QUEUE):
                    continue
                start, end = window(begin_ns, event)
                end_ps = event.offset_ps + event.duration_ps
                eager.enter(kind.name, end_ps)
                op = self._op(kind, eager.op(kind.name, event.offset_ps), data=data)
                if op is not None:
                    start, end = start - self._epoch_ns, end - self._epoch_ns
                    self._ops.add(thread, start, end, None, *op, "")
                    continue
                loads = kind.name == _GET_NEXT or _ITERATOR.match(kind.name) is not None
                if loads and (loads := end_ps > loaded_ps):
                    loaded_ps = end_ps
                self._host_span(kind, plane.stats(event.stats), thread, start, end, loads=loads)

    def _op(
        self, kind: Kind, eager: tuple[str, str] | None, *, data: bool
    ) -> tuple[str, str, str] | None:
        """Return the name, module and phase of the op that an event is, if it is one."""
        op = eager or op_of(kind.name, kind.display)
        if op is not None:
            return op[1] or UNNAMED, op[0], "data" if data else _phase(*op)
        hlo = self._kernels.hlo.get(kind.name)
        return None if hlo is None else (kind.name, *hlo)

    def _host_span(
        self,
        kind: Kind,
        stats: dict[str, Stat],
        thread: int,
        start: int,
        end: int,
        *,
        loads: bool,
    ) -> None:
        name = kind.name
        if name in (_ALLOCATE, _FREE) and "allocation_bytes" in stats:
            self._allocation(name, stats, start)
            return
        step = stats.get("step_num")
        what, file, line, function = "other", "", None, ""
        if isinstance(step, int) and 0 <= step < 1 << 62:
            what = "step"
            self._step(step, start, end)
            name = f"{name} {step}"
        elif _RUNTIME.match(name) or "correlation_id" in stats:
            what = "runtime"
        elif loads:
            what = "data"
        elif python := _PYTHON.match(name):
            what, function = "python", python["function"]
            if python["line"]:
                file, line = python["file"], int(python["line"])
        corr = stats.get("correlation_id")
        self._span(
            None, thread, start, end, what, name,
            corr=corr if isinstance(corr, int) and corr < 1 << 63 else None,
            line=line, file=file, function=function, args=told(stats),
        )  # fmt: skip

    def _span(
        self,
        pid: int | None,
        tid: int,
        start: int,
        end: int,
        kind: str,
        name: str,
        *,
        corr: int | None = None,
        line: int | None = None,
        file: str = "",
        function: str = "",
        args: str = "",
    ) -> None:
        start, end = start - self._epoch_ns, end - self._epoch_ns
        name = name or UNNAMED
        self._spans.add(pid, tid, start, end, corr, line, kind, name, file, function, args)

    def _allocation(self, name: str, stats: dict[str, Stat], start: int) -> None:
        def number(key: str) -> int | None:
            value = stats.get(key)
            return value if isinstance(value, int) and value < 1 << 63 else None

        size = number("allocation_bytes") or 0
        self._memory.add(
            start - self._epoch_ns,
            size if name == _ALLOCATE else -size,
            _signed(stats.get("addr")),
            number("bytes_allocated"),
            number("bytes_reserved"),
            _device_name(str(stats.get("allocator_name", ""))),
        )

    def _step(self, number: int, start: int, end: int) -> None:
        """Take a step that the host marked."""
        if number in self._steps:
            self._again += 1
            return
        start, end = start - self._epoch_ns, end - self._epoch_ns
        self._steps[number] = {"step": number, "start_ns": start, "duration_ns": end - start}

    def _step_of_device(self, number: int, start: int, end: int) -> None:
        """Take a step that a device tells: it lasts from the first of them to the last."""
        start, end = start - self._epoch_ns, end - self._epoch_ns
        known = self._device_steps.get(number)
        if known is not None:
            end = max(end, known["start_ns"] + known["duration_ns"])
            start = min(start, known["start_ns"])
        self._device_steps[number] = {
            "step": number, "start_ns": start, "duration_ns": end - start,
        }  # fmt: skip

    def _write_memory(self, shard: BulkShard, steps: list[dict[str, int]]) -> None:
        if len(self._memory):
            times = self._memory.number("t_ns")
            order = np.argsort(times, kind="stable")
            columns = self._memory.columns(order)
            shard.write("memory", {**columns, "step": step_of(times[order], steps)})


def _phase(name: str, op_type: str) -> str:
    if UPDATE.match(op_type):
        return "optimizer"
    if _DATA_OP.match(op_type):
        return "data"
    return "backward" if BACKWARD.search(name) else "other"


def _device_name(allocator: str) -> str:
    """Return the device of an allocator.

    Examples:
        >>> _device_name("GPU_1_bfc"), _device_name("cpu")
        ('cuda:1', 'cpu')
    """
    matched = re.match(r"^GPU_(\d+)", allocator)
    if matched:
        return f"cuda:{matched[1]}"
    return "cpu" if not allocator or "cpu" in allocator.lower() else allocator


def _signed(value: Stat | None) -> int | None:
    if not isinstance(value, int):
        return None
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
