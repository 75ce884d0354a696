"""One process of an export of Nsight Systems as rows of the tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelens.convert._columns import UNNAMED, Rows, masked, step_of
from tracelens.convert._hosttables import HostTables, Launches, op_rows, span_rows
from tracelens.convert.nsys_counters import USAGE_COLUMNS, write_counters, write_memory
from tracelens.convert.nsys_database import Database, Row, pid_of, tid_of
from tracelens.storage.bulk import BulkShard

_RANGES = frozenset({59, 60, 70, 71})
"""``eventType`` of NVTX push-pop and start-end ranges, plain and of the newer payload form."""
_DOMAIN = frozenset({75})
_STEP = re.compile(
    r"^(?:ProfilerStep#|(?:train(?:ing)?[ _-]?)?(?:step|iteration|iter)[ _#:=-]*)(\d+)$",
    re.IGNORECASE,
)
_TORCH_OP = re.compile(
    r"^(autograd::engine::evaluate_function: \w+|(?:\w+::)+[\w.]+|\w+Backward\d*)"
    r"(?=$|, (?:seq|op_id|sizes) = )"
)
_SEQ = re.compile(r", seq = (\d{1,18})\b")
_SIZES = re.compile(r", sizes = (\[[\d\[\], ]*\])")
"""Ranges of ``torch.autograd.profiler.emit_nvtx``: ``aten::mm, seq = 5, sizes = [[2, 3]]``."""
_VERSION = re.compile(r"_v\d+(?:_pt[sd][zs])?$|_pt[sd][zs]$")
_COMM = re.compile(r"nccl|rccl", re.IGNORECASE)
_COPY = ("Unknown", "HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA", "DtoD", "HtoH", "PtoP")
_MEMORY = ("Pageable", "Pinned", "Device", "Array", "Managed", "Device Static", "Managed Static")
"""CUPTI's memcpy and memory kinds, in the words of PyTorch's profiler."""
_SYNC = {1: "Event Sync", 2: "Stream Wait Event", 3: "Stream Sync", 4: "Context Sync"}
_MPI = (
    "MPI_COLLECTIVES_EVENTS", "MPI_P2P_EVENTS", "MPI_START_WAIT_EVENTS", "MPI_OTHER_EVENTS",
)  # fmt: skip
_KERNEL, _MEMCPY = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY"
_MEMSET, _RUNTIME = "CUPTI_ACTIVITY_KIND_MEMSET", "CUPTI_ACTIVITY_KIND_RUNTIME"
_WAIT = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"
_USAGE = "CUDA_GPU_MEMORY_USAGE_EVENTS"
_PLACE = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
_OF_CUDA = "eventClass IN (0, 1)"
_LEFT = ("OSRT_API", "SCHED_EVENTS", "COMPOSITE_EVENTS")
_FAR_NS = 1 << 62
_INT32 = range(-(1 << 31), 1 << 31)
_NESTED = 64
"""Ranges around a launch that are looked at."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was written of a process."""

    ops: int
    kernels: int
    steps: int


class ProcessRows:
    """The rows of one process.

    Args:
        database: the export.
        pid: the process.
        offset_ns: what to add to its times.
        problems: told what is damaged.
    """

    def __init__(self, database: Database, pid: int, offset_ns: int, problems: list[str]) -> None:
        self._database = database
        self._pid = pid
        self._offset_ns = offset_ns
        self._problems = problems
        self._ops = op_rows()
        self._spans = span_rows()
        self._kernels = Rows(
            ("start_ns", "duration_ns", "device", "stream", "corr_id", "size_bytes"),
            ("kind", "name", "grid", "block", "args"),
        )
        self._steps: dict[int, dict[str, int]] = {}
        self._again = 0
        self._damaged = 0

    def write(self, shard: BulkShard) -> Made:
        """Read the tables and write their rows."""
        self._ranges()
        self._calls()
        self._device()
        if "backward" in self._ops.texts("phase"):
            self._ops.rename("phase", "other", "forward")
        steps = sorted(self._steps.values(), key=lambda each: each["start_ns"])
        for each in steps:
            shard.event("step", **each)
        host = HostTables(self._ops, self._spans, steps)
        calls = host.launches(self._kernels.number("corr_id"))
        self._project(host, calls)
        # Ids follow time, so the ranges as the device saw them are in before they are given.
        host = HostTables(self._ops, self._spans, steps)
        host.write(shard)
        self._write_kernels(shard, steps, host)
        usage = self._mine(_USAGE, USAGE_COLUMNS, 1, order="start")
        self._damaged += write_memory(usage, self._offset_ns, shard, steps)
        write_counters(self._database, self._offset_ns, shard)
        self._tell(shard)
        return Made(len(self._ops), len(self._kernels), len(steps))

    def _ranges(self) -> None:
        domains = {
            domain: str(text)
            for kind, domain, text, pid in self._mine(
                "NVTX_EVENTS", ("eventType", "domainId", "text", "globalTid"), 3
            )
            if kind in _DOMAIN and text
        }
        for start, end, kind, text, named, domain, tid in self._mine(
            "NVTX_EVENTS",
            ("start", "end", "eventType", "text", "name:textId", "domainId", "globalTid"),
            6,
        ):
            name = str(text or named or "")
            if kind not in _RANGES or not isinstance(start, int) or not isinstance(end, int):
                continue
            self._range(name, domains.get(domain, ""), int(tid or 0), start, end)
        for table in _MPI:
            for start, end, name, tid in self._mine(
                table, ("start", "end", "name:textId", "globalTid"), 3
            ):
                self._span(tid, start, end, "other", str(name or "MPI"), args='{"domain": "MPI"}')

    def _range(self, name: str, domain: str, tid: int, start: int, end: int) -> None:
        try:
            begin, finish = self._window(start, end)
        except OverflowError:
            self._damaged += 1
            return
        op = _TORCH_OP.match(name)
        if op and not domain:
            backward = "Backward" in op[1] or op[1].startswith("autograd::")
            seq, sizes = _SEQ.search(name), _SIZES.search(name)
            self._ops.add(
                tid_of(tid), begin, finish, int(seq[1]) if seq else None,
                op[1], "", "backward" if backward else "other", sizes[1] if sizes else "",
            )  # fmt: skip
            return
        kind = "other" if domain == "MPI" else "annotation"
        step = None if domain else _STEP.match(name)
        if step:
            kind = "step"
            self._step(int(step[1]), start, end)
        args = json.dumps({"domain": domain}) if domain else ""
        self._span(tid, start, end, kind, name, args=args)

    def _step(self, number: int, start: int, end: int) -> None:
        if number in self._steps or number >= 1 << 62:
            self._again += 1
            return
        begin = start + self._offset_ns
        self._steps[number] = {"step": number, "start_ns": begin, "duration_ns": end - start}

    def _calls(self) -> None:
        # What is not of the runtime (0) or the driver (1) is the same call told a second time.
        own = {
            row[0]
            for row in self._mine(
                _RUNTIME, ("correlationId", "globalTid"), 1, "eventClass IN (0, 1)"
            )
        }
        for start, end, kind, tid, corr, name in self._mine(
            _RUNTIME,
            ("start", "end", "eventClass", "globalTid", "correlationId", "name:nameId"),
            3,
        ):
            if kind in (0, 1, None) or corr not in own:
                called = _VERSION.sub("", str(name or "call"))
                self._span(tid, start, end, "runtime", called, corr=corr)
        for start, end, tid, name in self._mine(
            "PROFILER_OVERHEAD", ("start", "end", "globalTid", "name:nameId"), 2
        ):
            self._span(tid, start, end, "overhead", str(name or "overhead"))

    def _device(self) -> None:
        for row in self._mine(
            _KERNEL,
            (*_PLACE, "name:demangledName", "name:shortName", "gridX", "gridY", "gridZ", "blockX",
             "blockY", "blockZ", "registersPerThread", "staticSharedMemory",
             "dynamicSharedMemory", "graphNodeId"),
            5,
        ):  # fmt: skip
            place, (full, short), shape = row[:5], row[6:8], row[8:14]
            name = str(full or short or "kernel")
            told = {
                key: value
                for key, value in zip(
                    ("registers", "static_shared", "dynamic_shared", "graph_node"), row[14:],
                    strict=True,
                )
                if value
            }  # fmt: skip
            self._kernel(
                place, "comm" if _COMM.search(name) else "kernel", name, None,
                _shape(shape[:3]), _shape(shape[3:]), json.dumps(told) if told else "",
            )  # fmt: skip
        for row in self._mine(_MEMCPY, (*_PLACE, "bytes", "copyKind", "srcKind", "dstKind"), 5):
            way = f"{_word(_MEMORY, row[8])} -> {_word(_MEMORY, row[9])}"
            self._kernel(row[:5], "memcpy", f"Memcpy {_word(_COPY, row[7])} ({way})", row[6])
        for row in self._mine(_MEMSET, (*_PLACE, "bytes", "memKind"), 5):
            kind = "Device" if row[7] is None else _word(_MEMORY, row[7])
            self._kernel(row[:5], "memset", f"Memset ({kind})", row[6])
        for row in self._mine(_WAIT, (*_PLACE, "syncType"), 5):
            name = _SYNC.get(row[6], "Sync") if isinstance(row[6], int) else "Sync"
            self._on_device(row[2], row[3], row[0], row[1], "sync", name)

    def _kernel(
        self,
        place: Row,
        kind: str,
        name: str,
        size: Any,
        grid: str = "",
        block: str = "",
        args: str = "",
    ) -> None:
        start, end, device, stream, corr = place
        try:
            begin, finish = self._window(start, end)
            self._kernels.add(
                begin, finish - begin, _number(device), _number(stream), corr, size,
                kind, name, grid, block, args,
            )  # fmt: skip
        except (TypeError, OverflowError):
            self._damaged += 1

    def _span(
        self,
        tid: Any,
        start: Any,
        end: Any,
        kind: str,
        name: str,
        *,
        corr: Any = None,
        args: str = "",
    ) -> None:
        try:
            self._spans.add(
                None, tid_of(tid), *self._window(start, end),
                corr, None, kind, name or UNNAMED, "", "", args,
            )  # fmt: skip
        except (TypeError, OverflowError):
            self._damaged += 1

    def _on_device(
        self, device: Any, stream: Any, start: Any, end: Any, kind: str, name: str
    ) -> None:
        try:
            self._spans.add(
                _number(device), _number(stream), *self._window(start, end), None, None,
                kind, name, "", "", "",
            )  # fmt: skip
        except (TypeError, OverflowError):
            self._damaged += 1

    def _window(self, start: Any, end: Any) -> tuple[int, int]:
        """Return when a row began and ended in the trace.

        Raises:
            TypeError: it does not tell.
            OverflowError: no clock shows such a time.
        """
        begin, finish = start + self._offset_ns, max(start, end) + self._offset_ns
        if not -_FAR_NS < begin <= finish < _FAR_NS:
            raise OverflowError
        return begin, finish

    def _project(self, host: HostTables, calls: Launches) -> None:
        """Add each range as the device saw it: from the first kernel launched in it to the last.

        As Nsight's ``nvtx_gpu_proj_trace`` has it, here for each stream.
        """
        kinds, texts = self._spans.codes("kind"), self._spans.texts("kind")
        if "annotation" not in texts and "step" not in texts:
            return
        wanted = np.isin(kinds, [texts.index(t) for t in ("annotation", "step") if t in texts])
        around = host.span_around
        start = self._kernels.number("start_ns")
        end = start + self._kernels.number("duration_ns")
        device, stream = self._kernels.number("device"), self._kernels.number("stream")
        seen: dict[tuple[int, int, int], list[int]] = {}
        at = calls.row.copy()
        for _ in range(_NESTED):
            at = np.where(at >= 0, np.append(around, -1)[at], -1)
            rows = np.flatnonzero((at >= 0) & np.append(wanted, False)[at])
            for row in rows.tolist():
                key = int(at[row]), int(device[row]), int(stream[row])
                bounds = seen.setdefault(key, [int(start[row]), int(end[row])])
                bounds[0], bounds[1] = min(bounds[0], start[row]), max(bounds[1], end[row])
            if (at < 0).all():
                break
        names, name_texts = self._spans.codes("name"), self._spans.texts("name")
        for (span, on, of), (first, last) in seen.items():
            name = name_texts[names[span]] if names[span] >= 0 else ""
            self._spans.add(
                on, of, int(first), int(last), None, None,
                "device_annotation", name, "", "", "",
            )  # fmt: skip

    def _write_kernels(
        self, shard: BulkShard, steps: list[dict[str, int]], host: HostTables
    ) -> None:
        if not len(self._kernels):
            return
        order = np.argsort(self._kernels.number("start_ns"), kind="stable")
        calls = host.launches(self._kernels.number("corr_id")[order])
        start = self._kernels.number("start_ns")[order]
        at = np.where(calls.row >= 0, calls.start_ns, start)
        columns = self._kernels.columns(order)
        shard.write(
            "kernels",
            {
                **columns,
                "kern_id": np.arange(len(order)),
                "step": step_of(at, steps),
                "span_id": masked(calls.span_id),
                "op_id": masked(calls.op_id),
            },
        )

    def _tell(self, shard: BulkShard) -> None:
        if self._damaged:
            self._problems.append(
                f"{self._database.path.name}: {self._damaged} rows cannot be read and are left out"
            )
        if self._again:
            self._problems.append(
                f"{self._database.path.name}: {self._again} ranges repeat the number of a step, "
                "and are kept as ranges only"
            )
        left = [f"{self._database.count(t)} of {t}" for t in _LEFT if self._database.count(t)]
        if left:
            told = f"rows that are not imported: {', '.join(left)}"
            shard.event("note", kind="import", severity="info", message=told)

    def _mine(
        self, table: str, columns: tuple[str, ...], owner: int, where: str = "", order: str = ""
    ) -> Iterator[Row]:
        """Yield the rows of this process.

        Args:
            table: the table.
            columns: its columns.
            owner: the place among them of the process or thread id.
            where: a further condition.
            order: a column to sort by.
        """
        for row in self._database.rows(table, columns, where=where, order=order):
            told = row[owner]
            if not isinstance(told, int) or pid_of(told) == self._pid:
                yield row


def _number(value: Any) -> int:
    """Return the number of a device or stream, 0 where it is not told.

    Raises:
        OverflowError: it is larger than the table can hold.
    """
    if value is None:
        return 0
    # Whether a float is in a range is found by counting, which never ends.
    if not isinstance(value, int) or value not in _INT32:
        raise OverflowError
    return int(value)


def _shape(sizes: Row) -> str:
    return ",".join(str(each) for each in sizes) if all(sizes) else ""


def _word(words: tuple[str, ...], number: Any) -> str:
    return words[number] if isinstance(number, int) and 0 <= number < len(words) else "Unknown"
