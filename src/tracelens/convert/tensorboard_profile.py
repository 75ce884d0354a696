"""Export for TensorBoard's PyTorch profiler tab (``torch-tb-profiler``).

That plugin knows the category names of 2021 only (``Operator``, ``Runtime``, ``Kernel``,
``Memcpy``, ``Memset``, ``forward_backward``): on what PyTorch has written since, it silently shows
no data loading and no runtime. This writes any trace the way it reads:
``<logdir>/<run>/<worker>.<ms>.pt.trace.json.gz``, a file for each rank.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tracelens.convert._output import new_file
from tracelens.convert._timeline import first_time_ns
from tracelens.convert._timeline_rows import Steps, rows
from tracelens.convert.perfetto import microseconds

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

_KERNELS = {"kernel": "Kernel", "comm": "Kernel", "memcpy": "Memcpy", "memset": "Memset"}
_OPERATORS = ("annotation", "data", "step")
"""What the plugin takes from the host beside ops; it drops what is called ``user_annotation``."""
_LOADER = re.compile(r"^enumerate\(Data(Loader\)#.*\.__next__$|Pipe\)#)")
_STEP = re.compile(r"^ProfilerStep#\d+$")
_WORKER = re.compile(r"^[A-Za-z0-9][\w-]*$")
_DEVICE = re.compile(r"^(?:cuda|gpu):(\d+)$")
_NS_PER_MS = 1_000_000
_LEVEL = 4
"""gzip's: higher ones take twice the time for a few percent."""

Json = dict[str, Any]


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
) -> int:
    """Write the trace as a run in a log folder of TensorBoard.

    Args:
        reader: an open trace.
        out_path: the log folder; the run in it has the trace's name.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        force: replace the files of an earlier export.

    Returns:
        How many events were written.

    Raises:
        ConfigError: a file is there already.
        TraceLensError: it cannot be written.
    """
    run = Path(out_path) / reader.path.name.removesuffix(".tltrace")
    base_ns = first_time_ns(reader)
    base_ms = (reader.manifest.epoch_unix_ns + base_ns) // _NS_PER_MS
    steps = first_step, None if last_step is None else last_step + 1
    written = 0
    made = run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        for rank, worker in _workers(reader).items():
            path = run / f"{worker}.{base_ms}.pt.trace.json.gz"
            with (
                new_file(path, force=force) as temporary,
                gzip.open(temporary, "wt", _LEVEL, encoding="utf-8", newline="\n") as file,
            ):
                written += _Worker(reader, rank, steps, base_ns, file).write()
    except OSError as error:
        from tracelens.errors import TraceLensError

        raise TraceLensError(f"cannot write {run}: {error.strerror or error}") from None
    finally:
        if not made and run.is_dir() and not any(run.iterdir()):
            run.rmdir()
    return written


def _workers(reader: TraceReader) -> dict[int, str]:
    """Return each rank's name: host and process id, from which the plugin tells the machines."""
    names: dict[int, str] = {}
    for shard in reader.shards():
        host = shard.host.replace(".", "-")
        if not _WORKER.match(host):
            return {rank: f"rank{rank}" for rank in reader.ranks()}
        names[shard.rank] = f"{host}_{shard.pid}"
    distinct = len(set(names.values())) == len(names)
    return names if distinct else {rank: f"rank{rank}" for rank in reader.ranks()}


class _Worker:
    """One rank's file."""

    def __init__(
        self, reader: TraceReader, rank: int, steps: Steps, base_ns: int, file: TextIO
    ) -> None:
        self._reader, self._rank, self._steps = reader, rank, steps
        self._offset_ns = reader.clock_offset_ns(rank) - base_ns
        self._file = file
        self._before = "\n"
        self._events = 0
        self._main_tid = 0
        self._pid = next((s.pid for s in reader.shards() if s.rank == rank and s.pid), rank + 1)

    def write(self) -> int:
        """Write it; return how many events there are."""
        about: Json = {"schemaVersion": 1}
        size = self._reader.manifest.world_size
        if size > 1:
            about["distributedInfo"] = {"rank": self._rank, "world_size": size}
        self._file.write(f'{_text(about)[:-1]},"traceEvents":[')
        self._ops()
        self._spans()
        self._kernels()
        self._memory()
        self._file.write("\n]}\n")
        return self._events

    def _ops(self) -> None:
        starts: dict[int, tuple[int, int]] = {}
        # With modules the plugin builds their backward passes from these, and fails on a module
        # that has none (one that is frozen, or run again for a checkpoint).
        tied = not any(kind == "module" for (kind,) in self._rows("spans", "kind"))
        wanted = {row[0] for row in self._rows("ops", "fwd_op_id") if tied and row[0] is not None}
        threads: Counter[int] = Counter()
        for row in self._rows(
            "ops",
            "op_id name tid start_ns duration_ns fwd_op_id in_shapes in_dtypes file line function",
        ):
            op_id, name, tid, start, duration, forward = row[:6]
            shapes, dtypes, file, line, function = row[6:]
            threads[tid] += 1
            if op_id in wanted:
                starts[op_id] = start, tid
            if duration is None:
                continue
            args = {"External id": op_id + 1, **_filled(**{
                "Input Dims": _parsed(shapes), "Input type": _parsed(dtypes),
                "Call stack": f"{file}({line}): {function}" if file else None,
            })}  # fmt: skip
            self._slice("Operator", name, self._pid, tid, start, duration, args)
            if forward in starts:
                # The plugin ties two ops by their starting times.
                begin, of = starts[forward]
                self._flow("s", op_id, of, begin)
                self._flow("f", op_id, tid, start)
        self._main_tid = threads.most_common(1)[0][0] if threads else 0

    def _spans(self) -> None:
        marked = False
        for kind, name, tid, start, duration, op, corr, me, parent, module in self._rows(
            "spans", "kind name tid start_ns duration_ns op_id corr_id span_id parent_id module"
        ):
            if kind == "runtime":
                args = {"External id": 0 if op is None else op + 1, "correlation": corr or 0}
                self._slice("Runtime", name, self._pid, tid, start, duration, args)
            elif kind in _OPERATORS:
                marked |= kind == "step" and bool(_STEP.match(name))
                if kind != "step" or _STEP.match(name):
                    self._slice("Operator", _named(kind, name), self._pid, tid, start, duration, {})
            elif kind in ("python", "module"):
                args = {"Python id": me, "Python parent id": parent}
                if kind == "module" and name.startswith("nn.Module: "):
                    args["Python module id"] = _module_number(name, module)
                self._slice("python_function", name, self._pid, tid, start, duration, args)
        if not marked:
            self._step_events()

    def _step_events(self) -> None:
        """Write the steps in the plugin's words, where the program did not use PyTorch's."""
        first, end = self._steps
        last = None if end is None else end - 1
        for step in self._reader.steps(first, last, rank=self._rank):
            start, duration = step.get("start_ns"), step.get("duration_ns")
            if isinstance(start, int) and isinstance(duration, int) and step["step"] >= 0:
                name = f"ProfilerStep#{step['step']}"
                self._slice("Operator", name, self._pid, self._main_tid, start, duration, {})

    def _kernels(self) -> None:
        for row in self._rows(
            "kernels",
            "kind name device stream start_ns duration_ns op_id corr_id size_bytes grid block"
            " occupancy args",
        ):
            kind, name, device, stream, start, duration = row[:6]
            op, corr, size, grid, block, occupancy, told = row[6:]
            known = _parsed(told)
            args = {
                **(known if isinstance(known, dict) else {}),
                "device": device, "stream": stream, "correlation": corr or 0,
                "External id": 0 if op is None else op + 1,
                **_filled(**{
                    "bytes": size, "grid": _sizes(grid), "block": _sizes(block),
                    "est. achieved occupancy %": occupancy,
                }),
            }  # fmt: skip
            self._slice(_KERNELS.get(kind, "Kernel"), name, device, stream, start, duration, args)

    def _memory(self) -> None:
        for at, device, size, address, allocated, reserved in self._rows(
            "memory", "t_ns device size_bytes address allocated_bytes reserved_bytes"
        ):
            matched = _DEVICE.match(device)
            args = {
                "Device Type": 1 if matched else 0, "Device Id": int(matched[1]) if matched else -1,
                "Bytes": size,
                **_filled(**{
                    "Addr": address, "Total Allocated": allocated, "Total Reserved": reserved,
                }),
            }  # fmt: skip
            if size:
                self._line(
                    f'"ph":"i","s":"t","name":"[memory]","pid":{self._pid},"tid":0,'
                    f'"ts":{self._time(at)},"args":{_text(args)}'
                )

    def _slice(
        self, category: str, name: str, pid: int, tid: int, start: int, duration: int, args: Json
    ) -> None:
        told = f',"args":{_text(args)}' if args else ""
        self._line(
            f'"ph":"X","cat":"{category}","name":{_text(name)},"pid":{pid},"tid":{tid},'
            f'"ts":{self._time(start)},"dur":{microseconds(max(0, duration))}{told}'
        )

    def _flow(self, phase: str, flow: int, tid: int, at: int) -> None:
        self._line(
            f'"ph":"{phase}","cat":"forward_backward","name":"forward_backward","id":{flow},'
            f'"pid":{self._pid},"tid":{tid},"ts":{self._time(at)},"bp":"e"'
        )

    def _time(self, at_ns: int) -> str:
        return microseconds(at_ns + self._offset_ns)

    def _line(self, fields: str) -> None:
        self._file.write(f"{self._before}{{{fields}}}")
        self._before = ",\n"
        self._events += 1

    def _rows(self, table: str, names: str) -> Iterator[tuple[Any, ...]]:
        return rows(self._reader, table, names.split(), self._rank, self._steps)


def _named(kind: str, name: str) -> str:
    """Return a span's name; the plugin knows the loading of data by PyTorch's."""
    if kind == "data" and not _LOADER.match(name):
        return f"enumerate(DataLoader)#{name}.__next__"
    return name


def _module_number(name: str, module: str | None) -> int:
    """Return a number that the calls of one module share."""
    last = name.rpartition("_")[2]
    if last.isdigit() and not module:
        return int(last)
    return zlib.crc32((module or name).encode()) & 0x7FFFFFFF


def _sizes(text: str | None) -> list[int] | None:
    """Return a launch's grid as numbers.

    Examples:
        >>> _sizes("8,1,1"), _sizes("[8, 1, 1]"), _sizes(None)
        ([8, 1, 1], [8, 1, 1], None)
    """
    if not text:
        return None
    return [int(each) for each in re.findall(r"\d+", text)]


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _filled(**values: Any) -> Json:
    return {key: value for key, value in values.items() if value is not None}


def _text(value: Any) -> str:
    def plain(each: Any) -> Any:
        if isinstance(each, float) and not math.isfinite(each):
            return str(each)
        if isinstance(each, dict):
            return {str(key): plain(item) for key, item in each.items()}
        return [plain(item) for item in each] if isinstance(each, list | tuple) else each

    return json.dumps(plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
