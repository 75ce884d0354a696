"""Export to Chrome trace-event JSON, which ui.perfetto.dev and chrome://tracing open.

Each rank is a process, each of its devices another; each thread and stream a track, each op, span
and kernel a slice (an instant where its duration was not measured), each step a slice on a track of
its own, each finding, sink and note an instant. Memory and counters are counters.
Times are microseconds with three decimals written from integer nanoseconds since the first event,
so none is rounded, neither here nor by a viewer that reads them as doubles.
The format: "Trace Event Format", Google, 2016 (fields ``ph``, ``ts``, ``dur``, ``pid``, ``tid``;
flows ``s`` and ``f`` with ``bp: "e"``, counters ``C``).
"""

from __future__ import annotations

import json
import math
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from tracelens.convert._output import new_file
from tracelens.convert._timeline import Slice, write

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader


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
        How many ops and kernels were written.

    Raises:
        ConfigError: ``out_path`` exists.
        TraceLensError: it cannot be written.
    """
    with (
        new_file(out_path, force=force) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        writer = _Writer(file)
        written = write(reader, writer, first_step, last_step)
        writer.close({"run_id": reader.manifest.run_id, "tool": "tracelens"})
    return written


class _Writer:
    """Streams trace events into the file, one a line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._separator = "\n"
        self._base_unix_ns = 0
        file.write('{"displayTimeUnit":"ns","traceEvents":[')

    def begin(self, base_unix_ns: int) -> None:
        """Take note of the Unix time that times count from."""
        self._base_unix_ns = base_unix_ns

    def process(self, pid: int, name: str, order: int) -> None:
        """Name a process."""
        self._about("process_name", pid, 0, {"name": name})
        self._about("process_sort_index", pid, 0, {"sort_index": order})

    def track(self, pid: int, tid: int, name: str, order: int) -> None:
        """Name a track."""
        self._about("thread_name", pid, tid, {"name": name})
        self._about("thread_sort_index", pid, tid, {"sort_index": order})

    def slice(self, pid: int, tid: int, what: Slice) -> None:
        """Write a slice or an instant, and the flows that touch it."""
        place = f'"pid":{pid},"tid":{tid},"ts":{microseconds(what.start_ns)}'
        ending = f',"cat":{_name(what.category)}'
        if what.args:
            ending += f',"args":{_text(what.args)}'
        if what.duration_ns is None:
            self._line(f'"ph":"i","name":{_name(what.name)},{place},"s":"{what.scope}"{ending}')
            return
        duration = microseconds(what.duration_ns)
        self._line(f'"ph":"X","name":{_name(what.name)},{place},"dur":{duration}{ending}')
        if what.duration_ns:
            # A viewer finds a flow's slice as the one that is open at its time.
            for flow in what.leaves:
                self._line(f'"ph":"s","cat":"flow","name":"flow","id":{flow},{place}')
            for flow in what.enters:
                self._line(f'"ph":"f","bp":"e","cat":"flow","name":"flow","id":{flow},{place}')

    def counter(self, pid: int, name: str, unit: str, t_ns: int, value: float) -> None:
        """Write a counter's value."""
        key = _name(unit or "value")
        number = value if math.isfinite(value) else 0
        self._line(
            f'"ph":"C","name":{_name(name)},"pid":{pid},"tid":0,"ts":{microseconds(t_ns)},'
            f'"args":{{{key}:{number!r}}}'
        )

    def close(self, other_data: dict[str, str]) -> None:
        """End the file."""
        # As text: Unix nanoseconds are more than a double holds.
        about = {**other_data, "base_unix_ns": str(self._base_unix_ns)}
        self._file.write(f'\n],"otherData":{_text(about)}}}\n')

    def _about(self, name: str, pid: int, tid: int, args: dict[str, Any]) -> None:
        self._line(f'"ph":"M","name":"{name}","pid":{pid},"tid":{tid},"args":{_text(args)}')

    def _line(self, fields: str) -> None:
        self._file.write(f"{self._separator}{{{fields}}}")
        self._separator = ",\n"


@lru_cache(1 << 14)
def _name(text: str) -> str:
    return _text(text)


def _text(value: Any) -> str:
    """Return a value of strings, finite numbers, lists and dicts as JSON."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape and UTF-8 not hold
        return json.dumps(value, separators=(",", ":"))
