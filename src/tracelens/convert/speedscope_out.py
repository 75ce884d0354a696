"""Export to speedscope's file format (https://www.speedscope.app, or npx speedscope FILE).

Each thread and stream becomes an evented profile of what ran on it, nested, and each thread that
was sampled a sampled profile. Weights and times are nanoseconds.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from tracelens.convert._output import new_file
from tracelens.convert._timeline import MARKS_TID, SAMPLE, STEPS_TID, Slice, write
from tracelens.convert._timeline_rows import rows

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

SCHEMA = "https://www.speedscope.app/file-format-schema.json"

_SOURCE = re.compile(r"^(?P<file>.+):(?P<line>\d+) in ")
_FRAME = re.compile(r"^(?P<name>.*) \((?P<file>[^()]*?)(?::(?P<line>\d+))?\)$")


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
) -> int:
    """Write the trace's threads, streams and samples for speedscope.

    Args:
        reader: an open trace.
        out_path: the file to write.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        force: replace an existing file.

    Returns:
        How many profiles were written.

    Raises:
        ConfigError: ``out_path`` exists.
        TraceLensError: it cannot be written.
    """
    frames = _Frames()
    sink = _Tracks(frames)
    write(reader, sink, first_step, last_step)
    steps = first_step, None if last_step is None else last_step + 1
    with (
        new_file(out_path, force=force) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        profiles = [*sink.profiles(), *_sampled(reader, frames, steps)]
        _write(file, reader.path.name, profiles, frames)
    return len(profiles)


class _Frames:
    """The distinct frames, which profiles tell by their numbers."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, str, str], int] = {}

    def number(self, name: str, file: str = "", line: str = "") -> int:
        key = name, file, line
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.frames)
            frame: dict[str, Any] = {"name": name}
            if file:
                frame["file"] = file
            if line:
                frame["line"] = int(line)
            self.frames.append(frame)
        return found


_MOST_NS = (1 << 63) - 1


class _Track:
    """What opens and closes on one track, in order of time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.times = array("q")
        self.frames = array("q")
        self._open: list[tuple[int, int]] = []

    def add(self, frame: int, start_ns: int, end_ns: int) -> None:
        self.close(start_ns)
        self._event(frame, start_ns)
        self._open.append((end_ns, frame))

    def close(self, until_ns: int | None = None) -> None:
        """Close what ends by a time, or all."""
        while self._open and (until_ns is None or self._open[-1][0] <= until_ns):
            end_ns, frame = self._open.pop()
            self._event(~frame, end_ns)

    def _event(self, frame: int, at_ns: int) -> None:
        # Frame numbers are 0 and above, so that the complement of one tells its end.
        self.frames.append(frame)
        self.times.append(max(-_MOST_NS, min(at_ns, _MOST_NS)))


class _Tracks:
    """Gathers the tracks of a timeline; counters, steps and marks are none."""

    def __init__(self, frames: _Frames) -> None:
        self._frames = frames
        self._processes: dict[int, str] = {}
        self._tracks: dict[tuple[int, int], _Track] = {}

    def begin(self, base_unix_ns: int) -> None:
        """Nothing: the format has no place for the time of day."""

    def process(self, pid: int, name: str, order: int) -> None:
        """Take note of a process's name."""
        self._processes[pid] = name

    def track(self, pid: int, tid: int, name: str, order: int) -> None:
        """Begin a track."""
        if tid not in (STEPS_TID, MARKS_TID):
            self._tracks[pid, tid] = _Track(f"{self._processes.get(pid, pid)}, {name}")

    def slice(self, pid: int, tid: int, what: Slice) -> None:
        """Add a slice."""
        track = self._tracks.get((pid, tid))
        # Samples have profiles of their own.
        if track is None or what.duration_ns is None or what.category == SAMPLE:
            return
        source = _SOURCE.match(str(what.args.get("source", "")))
        place = (source["file"], source["line"]) if source else ("", "")
        number = self._frames.number(what.name, *place)
        track.add(number, what.start_ns, what.start_ns + what.duration_ns)

    def counter(self, pid: int, name: str, unit: str, t_ns: int, value: float) -> None:
        """Nothing: the format has no counters."""

    def profiles(self) -> Iterator[tuple[dict[str, Any], Iterator[str]]]:
        """Yield each track's profile and its events, as JSON."""
        for track in self._tracks.values():
            track.close()
            if not track.times:
                continue
            about = {
                "type": "evented",
                "name": track.name,
                "unit": "nanoseconds",
                "startValue": track.times[0],
                "endValue": track.times[-1],
            }
            yield about, _events(track)


def _events(track: _Track) -> Iterator[str]:
    yield '"events":['
    before = ""
    for frame, at in zip(track.frames, track.times, strict=True):
        kind, number = ("O", frame) if frame >= 0 else ("C", ~frame)
        yield f'{before}{{"type":"{kind}","frame":{number},"at":{at}}}'
        before = ","
    yield "]"


def _sampled(
    reader: TraceReader, frames: _Frames, steps: tuple[int | None, int | None]
) -> Iterator[tuple[dict[str, Any], Iterator[str]]]:
    for rank in reader.ranks():
        threads: dict[str, tuple[list[list[int]], list[int]]] = {}
        for thread, stack, duration in rows(
            reader, "samples", ["thread", "stack", "duration_ns"], rank, steps
        ):
            samples, weights = threads.setdefault(thread, ([], []))
            samples.append([frames.number(*_frame(text)) for text in stack.split("\n")])
            weights.append(duration)
        for thread, (samples, weights) in threads.items():
            about = {
                "type": "sampled",
                "name": f"rank {rank}, {thread} (samples)",
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": sum(weights),
            }
            yield about, iter([f'"samples":{_text(samples)},"weights":{_text(weights)}'])


def _frame(text: str) -> tuple[str, str, str]:
    matched = _FRAME.match(text)
    if matched is None:
        return text, "", ""
    return matched["name"], matched["file"], matched["line"] or ""


def _write(
    file: TextIO,
    name: str,
    profiles: list[tuple[dict[str, Any], Iterator[str]]],
    frames: _Frames,
) -> None:
    about = {"$schema": SCHEMA, "name": name, "exporter": "tracelens", "activeProfileIndex": 0}
    file.write(f'{_text(about)[:-1]},"profiles":[')
    before = "\n"
    for head, parts in profiles:
        file.write(f"{before}{_text(head)[:-1]},")
        file.writelines(parts)
        file.write("}")
        before = ",\n"
    file.write(f'\n],"shared":{_text({"frames": frames.frames})}}}\n')


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
