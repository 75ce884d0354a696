"""A tfdbg v2 dump (``tf.debugging.experimental.enable_dump_debug_info``) as a trace.

The dump is a folder of TFRecord files: what the program was (``.source_files``,
``.stack_frames``, ``.graphs``) and what it did (``.execution``: eager ops and calls of
functions, ``.graph_execution_traces``: every output of a graph's ops, a file for each host).
The first three are read whole, the last two as streams, joined by time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tracelens.convert import tfdbg_events as events
from tracelens.convert.newtrace import Explain, NewTrace, new_trace
from tracelens.convert.protowire import WireError
from tracelens.convert.tfdbg_events import Execution, Metadata, Trace, What
from tracelens.convert.tfdbg_ops import DumpOps
from tracelens.convert.tfdbg_program import Graphs, Sources
from tracelens.convert.tfrecord import records
from tracelens.errors import TraceError

Progress = Callable[[int, int, str], None]
T = TypeVar("T")

METADATA = ".metadata"
_FILES = "source_files", "stack_frames", "graphs"
_AHEAD = 4096
_EVERY = 2048
_MAX_TOLD = 16


@dataclass
class Damage:
    """What of a dump could not be read.

    Attributes:
        lines: a sentence each, the first few.
        count: how many there were.
    """

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def tell(self, line: str) -> None:
        """Add one."""
        self.count += 1
        if len(self.lines) < _MAX_TOLD:
            self.lines.append(line)


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import.

    Attributes:
        ops: ops written.
        steps: steps found.
        findings: non-finite values that were explained.
        problems: what could not be read, a sentence each.
    """

    ops: int
    steps: int
    findings: int
    problems: tuple[str, ...]


def sniff(path: Path) -> bool:
    """Tell whether a path is a tfdbg v2 dump."""
    return path.is_dir() and any(path.glob(f"*{METADATA}"))


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write a dump as a trace.

    Args:
        path: the dump's folder.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(bytes read, bytes in all, what)``.
        explain: makes the finding of a bad value.

    Raises:
        TraceError: it is no dump, or nothing of it can be read.
        ConfigError: ``out_path`` exists.
    """
    damage = Damage()
    dump = _Dump(path, damage, progress)
    begin, about = dump.begin()
    sources, graphs, devices = dump.program()
    epoch_unix_ns = int(begin * 1e9)
    with new_trace(
        out_path,
        epoch_unix_ns=epoch_unix_ns,
        host=sources.host or "unknown",
        framework="tensorflow",
        force=force,
        explain=explain,
    ) as trace:
        ops = DumpOps(trace, sources, graphs, devices, epoch_unix_ns)
        trace.note("import", _told(path, about))
        _run(dump, ops, damage)
        ops.finish()
        _tell(trace, damage)
        found = trace.n_ops, ops.n_steps, trace.findings
    if not found[0] and damage.count:
        raise TraceError(f"{path}: nothing could be read: {damage.lines[0]}")
    return Imported(*found, tuple(damage.lines))


def _told(path: Path, about: Metadata) -> str:
    version = f", TensorFlow {about.tensorflow_version}" if about.tensorflow_version else ""
    return f"imported from the tfdbg v2 dump {path.name}{version}"


def _tell(trace: NewTrace, damage: Damage) -> None:
    for line in damage.lines:
        trace.note("drop", line, "warning")
    if damage.count > len(damage.lines):
        rest = damage.count - len(damage.lines)
        trace.note("drop", f"{rest} more places of the dump could not be read", "warning")


def _run(dump: _Dump, ops: DumpOps, damage: Damage) -> None:
    """Hand over executions and traces in the order of time."""
    executions = _Ahead(dump.executions())
    for trace in dump.traces():
        while (due := executions.due(trace.wall_time)) is not None:
            _try(lambda done: ops.execution(done), due, damage)
        ops.expect(executions.call_of)
        _try(lambda seen: ops.trace(seen), trace, damage)
    while (due := executions.due(float("inf"))) is not None:
        _try(lambda done: ops.execution(done), due, damage)


def _try(do: Callable[[T], None], what: T, damage: Damage) -> None:
    try:
        do(what)
    except WireError as error:
        damage.tell(f"a tensor of the dump is damaged: {error}")


class _Ahead:
    """Executions, with a look ahead: a function's call is told after what happened in it."""

    def __init__(self, executions: Iterator[Execution]) -> None:
        self._rest = executions
        self._read: deque[Execution] = deque()

    def due(self, wall_time: float) -> Execution | None:
        """Return the next one, if it ended by then."""
        if not self._read and not self._more():
            return None
        return self._read.popleft() if self._read[0].wall_time <= wall_time else None

    def call_of(self, graph_id: str) -> Execution | None:
        """Return the next call of a function, without taking it."""
        for each in self._read:
            if each.graph_id == graph_id:
                return each
        while len(self._read) < _AHEAD and self._more():
            if self._read[-1].graph_id == graph_id:
                return self._read[-1]
        return None

    def _more(self) -> bool:
        found = next(self._rest, None)
        if found is not None:
            self._read.append(found)
        return found is not None


class _Dump:
    """The files of a dump.

    Raises:
        TraceError: the folder holds no dump.
    """

    def __init__(self, path: Path, damage: Damage, progress: Progress | None) -> None:
        self._damage = damage
        self._progress = progress
        if not path.is_dir():
            what = "is not a directory" if path.exists() else "no such directory"
            raise TraceError(f"{path}: {what}: a tfdbg v2 dump is one")
        found = sorted(path.glob(f"*{METADATA}"))
        if not found:
            raise TraceError(
                f"{path}: no tfdbg v2 dump: a file *{METADATA} is missing "
                "(tf.debugging.experimental.enable_dump_debug_info writes one)"
            )
        self._path = path
        self._sets = [each.with_suffix("") for each in found]
        self._total = sum(each.stat().st_size for each in path.iterdir() if each.is_file())
        self._done = 0
        self._n_read = 0

    def begin(self) -> tuple[float, Metadata]:
        """Return the dump's first moment and what it says of itself; the first set is the main.

        Raises:
            TraceError: no metadata can be read, or the sets are of several runs.
        """
        known: list[tuple[float, Path, Metadata]] = []
        for each in self._sets:
            for event in self._events(each, "metadata"):
                if event.what is What.METADATA:
                    known.append((event.wall_time, each, events.metadata(event.body)))
        if not known:
            raise TraceError(f"{self._path}: no tfdbg v2 dump: its metadata cannot be read")
        if len({about.run_id for _, _, about in known}) > 1:
            raise TraceError(f"{self._path}: dumps of several runs: give each a folder of its own")
        known.sort(key=lambda each: each[0])
        self._sets = [each for _, each, _ in known]
        return known[0][0], known[0][2]

    def program(self) -> tuple[Sources, Graphs, dict[int, str]]:
        """Read what the program was."""
        sources, graphs, devices = Sources(), Graphs(), {}
        for kind in _FILES:
            for event in self._events(self._sets[0], kind):
                try:
                    if event.what is What.SOURCE_FILE:
                        sources.add_file(events.source_file(event.body))
                    elif event.what is What.STACK_FRAME:
                        sources.add_frame(events.frame(event.body))
                    elif event.what is What.GRAPH:
                        graphs.add(events.graph(event.body))
                    elif event.what is What.GRAPH_OP:
                        graphs.add_op(events.graph_op(event.body))
                    elif event.what is What.DEVICE:
                        number, name = events.device(event.body)
                        devices[number] = name
                except WireError as error:
                    self._damage.tell(f"an event of the {kind} is damaged: {error}")
        return sources, graphs, devices

    def executions(self) -> Iterator[Execution]:
        """Yield eager ops and calls."""
        for event in self._events(self._sets[0], "execution"):
            if event.what is What.EXECUTION:
                try:
                    yield events.execution(event.wall_time, event.body)
                except WireError as error:
                    self._damage.tell(f"an execution is damaged: {error}")

    def traces(self) -> Iterator[Trace]:
        """Yield what graphs' ops put out, of all hosts by time."""
        streams = [self._traces_of(each) for each in self._sets]
        return heapq.merge(*streams, key=lambda trace: trace.wall_time)

    def _traces_of(self, of: Path) -> Iterator[Trace]:
        for event in self._events(of, "graph_execution_traces"):
            if event.what is What.TRACE:
                try:
                    yield events.trace(event.wall_time, event.body)
                except WireError as error:
                    self._damage.tell(f"a graph's trace is damaged: {error}")

    def _events(self, of: Path, kind: str) -> Iterator[events.Event]:
        path = of.with_name(f"{of.name}.{kind}")
        try:
            for data in records(path, self._damage.tell):
                self._count(len(data) + 16, kind)
                try:
                    found = events.event(data)
                except WireError as error:
                    self._damage.tell(f"an event of {path.name} is damaged: {error}")
                    continue
                if found is not None:
                    yield found
        except OSError as error:
            self._damage.tell(f"{path.name} cannot be read: {error.strerror}")

    def _count(self, size: int, kind: str) -> None:
        self._done += size
        self._n_read += 1
        if self._progress is not None and self._n_read % _EVERY == 0:
            self._progress(self._done, self._total, kind.replace("_", " "))
