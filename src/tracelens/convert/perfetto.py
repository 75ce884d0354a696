"""Export to Chrome trace-event JSON, which ui.perfetto.dev and chrome://tracing open.

Each rank is a process, each thread a track, each op a slice (an instant where its duration was
not measured), each step a slice on a track of its own, each finding, sink and note an instant.
Times are microseconds with three decimals written from integer nanoseconds, so none is rounded.
The format: "Trace Event Format", Google, 2016 (fields ``ph``, ``ts``, ``dur``, ``pid``, ``tid``).
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, TextIO

from tracelens.convert._lanes import Lanes
from tracelens.convert._output import new_file

if TYPE_CHECKING:
    from tracelens.events import Op, TensorRecord
    from tracelens.storage.reader import TraceReader

# Viewers reserve process 0 and thread 0 for the kernel's idle task.
_FIRST_PID = 1
_STEPS_TID = 1
_MARKS_TID = 2
# Above any thread id of Linux (at most 2**22), so that extra lanes never collide with a thread.
_FIRST_EXTRA_TID = 1 << 23


def microseconds(time_ns: int) -> str:
    """Write nanoseconds as exact decimal microseconds.

    Examples:
        >>> microseconds(1234567)
        '1234.567'
        >>> microseconds(-5)
        '-0.005'
    """
    sign = "-" if time_ns < 0 else ""
    whole, part = divmod(abs(time_ns), 1000)
    return f"{sign}{whole}.{part:03d}"


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
) -> int:
    """Write the trace as Chrome trace-event JSON.

    Args:
        reader: an open trace.
        out_path: the file to write.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        force: replace an existing file.

    Returns:
        How many ops were written.

    Raises:
        ConfigError: ``out_path`` exists.
        TraceLensError: it cannot be written.
    """
    with (
        new_file(out_path, force=force) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        writer = _Writer(file)
        for rank in reader.ranks():
            _export_rank(reader, writer, rank, first_step, last_step)
        writer.close({"run_id": reader.manifest.run_id, "tool": "tracelens"})
    return writer.n_ops


class _Writer:
    """Streams trace events into the file, one a line."""

    def __init__(self, file: TextIO) -> None:
        self.n_ops = 0
        self._file = file
        self._separator = "\n"
        file.write('{"displayTimeUnit":"ns","traceEvents":[')

    def event(
        self,
        phase: str,
        name: str,
        pid: int,
        tid: int,
        *,
        start_ns: int | None = None,
        duration_ns: int | None = None,
        category: str = "",
        scope: str = "",
        args: dict[str, Any] | None = None,
    ) -> None:
        parts = [f'"ph":"{phase}","name":{_text(name)},"pid":{pid},"tid":{tid}']
        if start_ns is not None:
            parts.append(f'"ts":{microseconds(start_ns)}')
        if duration_ns is not None:
            parts.append(f'"dur":{microseconds(duration_ns)}')
        if category:
            parts.append(f'"cat":{_text(category)}')
        if scope:
            parts.append(f'"s":"{scope}"')
        if args:
            parts.append(f'"args":{_text(_plain(args))}')
        self._file.write(self._separator + "{" + ",".join(parts) + "}")
        self._separator = ",\n"

    def close(self, other_data: dict[str, str]) -> None:
        self._file.write(f'\n],"otherData":{_text(other_data)}}}\n')


def _export_rank(
    reader: TraceReader,
    writer: _Writer,
    rank: int,
    first_step: int | None,
    last_step: int | None,
) -> None:
    pid = _FIRST_PID + rank
    offset_ns = reader.clock_offset_ns(rank)
    writer.event("M", "process_name", pid, 0, args={"name": f"rank {rank}"})
    writer.event("M", "process_sort_index", pid, 0, args={"sort_index": rank})
    _name_thread(writer, pid, _STEPS_TID, "steps", -2)
    _name_thread(writer, pid, _MARKS_TID, "findings", -1)
    for step in reader.steps(first_step, last_step, rank=rank):
        if _is_time(step.get("start_ns")):
            details: dict[str, Any] = {
                key: step[key] for key in ("n_ops", "hits", "scalars") if key in step
            }
            writer.event(
                "X",
                f"step {step['step']}",
                pid,
                _STEPS_TID,
                start_ns=step["start_ns"] + offset_ns,
                duration_ns=_duration(step.get("duration_ns")),
                category="step",
                args=details,
            )
    threads = _Threads(writer, pid)
    op_starts: dict[int, int] = {}
    marks = [
        event
        for kind in ("finding", "sink", "note")
        for event in reader.events(kind, rank=rank)
        if _within(event.get("step"), first_step, last_step)
    ]
    wanted = {int(event["op_id"]) for event in marks if isinstance(event.get("op_id"), int)}
    for op in reader.iter_ops(first_step, last_step, rank=rank):
        if op.op_id in wanted:
            op_starts[op.op_id] = op.start_ns
        start_ns = op.start_ns + offset_ns
        args = _op_args(op)
        if op.duration_ns is None:
            writer.event(
                "i", op.name, pid, threads.thread(op.tid), start_ns=start_ns,
                category=op.phase.label, scope="t", args=args,
            )  # fmt: skip
        else:
            duration_ns = max(0, op.duration_ns)
            tid = threads.slice(op.tid, start_ns, start_ns + duration_ns)
            writer.event(
                "X", op.name, pid, tid, start_ns=start_ns, duration_ns=duration_ns,
                category=op.phase.label, args=args,
            )  # fmt: skip
        writer.n_ops += 1
    for event in marks:
        start = event.get("t_ns")
        if not _is_time(start):
            op_id = event.get("op_id")
            start = op_starts.get(op_id, 0) if isinstance(op_id, int) else 0
        writer.event(
            "i",
            _mark_name(event),
            pid,
            _MARKS_TID,
            start_ns=int(start or 0) + offset_ns,
            category=str(event.get("t", "note")),
            scope="p",
            args={key: value for key, value in event.items() if key != "t"},
        )


class _Threads:
    """The tracks of one rank: each thread's own, and extra lanes for slices that cross."""

    def __init__(self, writer: _Writer, pid: int) -> None:
        self._writer = writer
        self._pid = pid
        self._lanes: dict[int, Lanes] = {}
        self._named: dict[tuple[int, int], int] = {}
        self._next_extra = _FIRST_EXTRA_TID

    def thread(self, tid: int, lane: int = 0) -> int:
        track = self._named.get((tid, lane))
        if track is None:
            if lane == 0 and tid > _MARKS_TID:
                track = tid
            else:
                track = self._next_extra
                self._next_extra += 1
            self._named[tid, lane] = track
            label = f"thread {tid}" if lane == 0 else f"thread {tid} (overlapping {lane})"
            _name_thread(self._writer, self._pid, track, label, len(self._named))
        return track

    def slice(self, tid: int, start_ns: int, end_ns: int) -> int:
        lanes = self._lanes.setdefault(tid, Lanes())
        return self.thread(tid, lanes.place(start_ns, end_ns))


def _name_thread(writer: _Writer, pid: int, tid: int, name: str, order: int) -> None:
    writer.event("M", "thread_name", pid, tid, args={"name": name})
    writer.event("M", "thread_sort_index", pid, tid, args={"sort_index": order})


def _mark_name(event: dict[str, Any]) -> str:
    kind = str(event.get("t", "note"))
    if kind == "sink":
        return f"non-finite {event.get('sink', 'value')} {event.get('name', '')}".rstrip()
    return str(event.get("message") or event.get("rule") or event.get("kind") or kind)


def _is_time(value: object) -> bool:
    return isinstance(value, int) and abs(value) < 1 << 63


def _duration(value: object) -> int:
    return max(0, value) if isinstance(value, int) and value < 1 << 63 else 0


def _within(step: object, first: int | None, last: int | None) -> bool:
    if not isinstance(step, int):
        return True
    return (first is None or step >= first) and (last is None or step <= last)


def _op_args(op: Op) -> dict[str, Any]:
    args: dict[str, Any] = {"op_id": op.op_id, "step": op.step}
    if op.module:
        args["module"] = op.module
    if op.source is not None:
        args["source"] = f"{op.source.file}:{op.source.line} in {op.source.function}"
        if op.source.code:
            args["code"] = op.source.code
    if op.parent_id >= 0:
        args["parent_id"] = op.parent_id
    if op.fwd_op_id >= 0:
        args["forward_op_id"] = op.fwd_op_id
    if op.inputs:
        args["inputs"] = [_tensor_text(tensor) for tensor in op.inputs]
    if op.outputs:
        args["outputs"] = [_tensor_text(tensor) for tensor in op.outputs]
    return args


def _tensor_text(tensor: TensorRecord) -> str:
    text = tensor.dtype or "tensor"
    if tensor.shape is not None:
        text += str(list(tensor.shape))
    if tensor.stats is not None and tensor.stats.nonfinite:
        stats = tensor.stats
        text += f" nan={stats.nan} +inf={stats.posinf} -inf={stats.neginf}"
    return text


def _plain(value: Any) -> Any:
    """Replace the floats JSON cannot hold by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
