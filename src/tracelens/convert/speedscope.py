"""speedscope's file format as a trace of samples: every profile of it, evented and sampled.

The format: https://www.speedscope.app/file-format-schema.json. py-spy, rbspy, 0x and others write
it. A stack that was open for a while is one sample that lasted so long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from tracelens.convert._columns import Imported
from tracelens.convert._textfile import BAD_JSON, beginning, whole
from tracelens.convert.bulktrace import fresh_trace
from tracelens.convert.newtrace import Explain
from tracelens.convert.pyspy_samples import MAX_FRAMES, Samples, bounded, frame_text, step_in
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard

Progress = Callable[[int, int, str], None]

_SCHEMA = b"speedscope.app/file-format-schema.json"
_NS = {"nanoseconds": 1, "microseconds": 10**3, "milliseconds": 10**6, "seconds": 10**9}
_UNTIMED = ("py-spy",)
"""Exporters that leave out idle time, so that weights do not add up to times."""
_MAX_TOLD = 16


class _Frame(msgspec.Struct):
    name: str
    file: str | None = None
    line: int | None = None


class _Shared(msgspec.Struct):
    frames: list[_Frame]


class _Event(msgspec.Struct):
    type: str
    frame: int
    at: float


class _Profile(msgspec.Struct):
    type: str
    name: str = ""
    unit: str = "none"
    startValue: float = 0.0
    endValue: float = 0.0
    samples: list[list[int]] = []
    weights: list[float] = []
    events: list[_Event] = []


class _File(msgspec.Struct):
    shared: _Shared
    profiles: list[_Profile]
    exporter: str | None = None
    name: str | None = None


def sniff(path: Path) -> bool:
    """Tell whether a file is speedscope's."""
    if not path.is_file():
        return False
    head = beginning(path)
    if head.lstrip()[:1] != b"{":
        return False
    return _SCHEMA in head or path.name.endswith((".speedscope.json", ".speedscope"))


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write a file's profiles as a trace, a thread for each.

    Args:
        path: the file.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(profiles done, profiles in all, what)``.
        explain: not used: there are no values.

    Raises:
        TraceError: it is not speedscope's, or holds no sample.
        ConfigError: ``out_path`` exists.
    """
    problems: list[str] = []
    file = _read(path)
    samples = Samples()
    for done, profile in enumerate(file.profiles):
        if progress is not None:
            progress(done, len(file.profiles), profile.name)
        take = {"sampled": _sampled, "evented": _evented}.get(profile.type)
        if take is None:
            problems.append(f"profile {profile.name!r}: unknown type {profile.type!r}, left out")
            continue
        take(_Reading(file, profile, samples, problems))
    problems += samples.problems()
    if not samples.samples:
        raise TraceError(f"{path}: no samples{': ' + problems[0] if problems else ''}")
    with fresh_trace(out_path, force=force) as directory:
        shard = BulkShard(directory, epoch_unix_ns=0, framework="", host="")
        with shard:
            message = f"from {path.name}, {file.exporter or 'speedscope'}"
            shard.event("note", kind="import", severity="info", message=message)
            steps = samples.write(shard)
    return Imported(0, steps, 0, tuple(problems[:_MAX_TOLD]), 0, shard.rows)


class _Reading:
    """One profile while it is read.

    Args:
        file: of which it is one.
        profile: the profile.
        samples: where its samples go.
        problems: told what is damaged.
    """

    def __init__(
        self, file: _File, profile: _Profile, samples: Samples, problems: list[str]
    ) -> None:
        self.profile = profile
        self.timed = profile.unit in _NS and not (file.exporter or "").startswith(_UNTIMED)
        self._scale = _NS.get(profile.unit, 0)
        self._samples = samples
        self._problems = problems
        self._frames = []
        for frame in file.shared.frames:
            name, step = step_in(frame.name)
            self._frames.append((frame_text(name, frame.file or "", frame.line), step))
        if profile.unit not in _NS and profile.unit != "none":
            self.tell(f"weights are {profile.unit}, no time: only the stacks are kept")

    def tell(self, what: str) -> None:
        """Say what is wrong with the profile."""
        self._problems.append(f"profile {self.profile.name!r}: {what}")

    def knows(self, frame: int) -> bool:
        """Tell whether there is a frame of that number."""
        return 0 <= frame < len(self._frames)

    def add(self, stack: list[int], at: float, weight: float) -> None:
        """Take in a stack that was open for a while."""
        stack = stack[-MAX_FRAMES - 1 :]
        texts = [self._frames[each][0] for each in stack]
        marks = [step for each in stack if (step := self._frames[each][1]) is not None]
        count = max(1, bounded(weight)) if self.profile.unit == "none" else 1
        self._samples.add(
            self.profile.name or "all threads",
            texts,
            marks[-1] if marks else None,
            duration_ns=bounded(weight * self._scale),
            count=count,
            t_ns=bounded(at * self._scale) if self.timed else None,
        )


def _sampled(reading: _Reading) -> None:
    profile = reading.profile
    if len(profile.samples) != len(profile.weights):
        reading.tell(
            f"{len(profile.samples)} samples and {len(profile.weights)} weights: "
            "those that have both are kept"
        )
    at, unknown = profile.startValue, 0
    for stack, weight in zip(profile.samples, profile.weights, strict=False):
        if weight < 0 or not all(map(reading.knows, stack)):
            unknown += 1
            continue
        if stack:
            reading.add(stack, at, weight)
        at += weight
    if unknown:
        reading.tell(f"{unknown} samples name a frame that is not there, and are left out")


def _evented(reading: _Reading) -> None:
    profile = reading.profile
    stack: list[int] = []
    last = profile.startValue
    for number, event in enumerate(profile.events):
        wrong = _wrong(event, stack, last, reading)
        if wrong:
            left = len(profile.events) - number
            reading.tell(f"event {number}: {wrong}; it and the {left - 1} after it are left out")
            return
        if stack and event.at > last:
            reading.add(stack, last, event.at - last)
        last = event.at
        if event.type == "O":
            stack.append(event.frame)
        else:
            stack.pop()
    if stack:
        reading.tell(f"{len(stack)} frames are never closed: taken as open until the end")
        if profile.endValue > last:
            reading.add(stack, last, profile.endValue - last)


def _wrong(event: _Event, stack: list[int], last: float, reading: _Reading) -> str:
    """Return what is wrong with an event, empty if nothing is."""
    if event.type not in ("O", "C"):
        return f"unknown type {event.type!r}"
    if not reading.knows(event.frame):
        return f"there is no frame {event.frame}"
    if event.at < last:
        return "it is before the one before it"
    if event.type == "C" and (not stack or stack[-1] != event.frame):
        return "it closes a frame that is not the innermost"
    return ""


def _read(path: Path) -> _File:
    try:
        found: _File = msgspec.json.decode(whole(path), type=_File)
    except BAD_JSON as error:
        raise TraceError(f"{path}: not a speedscope file, or damaged: {error}") from None
    return found
