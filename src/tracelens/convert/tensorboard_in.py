"""Scalars of TensorBoard's event files as a trace, to be compared with others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tracelens.convert.bulktrace import fresh_trace
from tracelens.convert.eventfile import ScalarEvent, scalar_events
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard

Progress = Callable[[int, int, str], None]

_MARK = "tfevents"
_MAX_LOOKED_AT = 20_000
_MAX_TOLD = 16
_MAX_VALUES = 5_000_000


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import.

    Attributes:
        ops: always 0, event files hold none.
        steps: steps written.
        findings: always 0.
        problems: what could not be read, a sentence each.
    """

    ops: int
    steps: int
    findings: int
    problems: tuple[str, ...]


@dataclass
class _Read:
    """What was read: values by step and name, times by step, and what else there was."""

    values: dict[int, dict[str, float]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    count: int = 0

    def tell(self, problem: str) -> None:
        if len(self.problems) < _MAX_TOLD:
            self.problems.append(problem)

    def other(self, tag: str) -> None:
        if tag in self.others or len(self.others) < 1 << 12:
            self.others[tag] += 1

    def add(self, name: str, event: ScalarEvent) -> bool:
        """Keep a scalar; false once there are too many."""
        self.count += 1
        if self.count > _MAX_VALUES:
            self.tell(f"only the first {_MAX_VALUES:,} values were imported")
            return False
        self.values.setdefault(event.step, {})[name] = event.value
        self.times.setdefault(event.step, event.wall_time_s)
        return True


def sniff(path: Path) -> bool:
    """Tell whether a path is an event file, or a folder with one in it."""
    return next(_files(path), None) is not None


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: object = None,
) -> Imported:
    """Write the scalars of event files as a trace's steps.

    The runs of a folder are told apart by a prefix (``validation/loss``). Of a step that was
    written twice, as after a restart, the later value counts.

    Args:
        path: an event file or a log folder.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(files read, files in all, what)``.
        explain: not used; event files hold no ops that could be a cause.

    Raises:
        TraceError: there is no scalar in it.
        ConfigError: ``out_path`` exists.
    """
    files = sorted(_files(path))
    runs = {file.parent for file in files}
    read = _Read()
    for done, file in enumerate(files):
        if progress is not None:
            progress(done, len(files), "files")
        run = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
        prefix = f"{run}/" if len(runs) > 1 and run != "." else ""
        try:
            for event in scalar_events(file, read.tell, read.other):
                if not read.add(f"{prefix}{event.tag}", event):
                    break
        except OSError as error:
            read.tell(f"{file.name}: {error.strerror or error}")
    if not read.values:
        reason = read.problems[0] if read.problems else "its event files hold no scalar"
        raise TraceError(f"{path}: nothing to import: {reason}")
    _write(read, out_path, path, force=force)
    return Imported(0, len(read.values), 0, tuple(read.problems))


def _write(read: _Read, out_path: Path, path: Path, *, force: bool) -> None:
    known = [at for at in read.times.values() if 0 < at < 1 << 33]
    epoch_unix_ns = int(min(known, default=time.time()) * 1e9)
    with (
        fresh_trace(out_path, force=force) as run_dir,
        BulkShard(
            run_dir, epoch_unix_ns=epoch_unix_ns, framework="tensorboard", host="unknown"
        ) as shard,
    ):
        for step in sorted(read.values):
            at = read.times[step]
            start_ns = int(at * 1e9) - epoch_unix_ns if 0 < at < 1 << 33 else None
            shard.event("step", step=step, start_ns=start_ns, scalars=read.values[step])
        told = f"scalars of TensorBoard's event files in {path}"
        shard.event("note", kind="import", severity="info", message=told)
        for tag, count in read.others.most_common(_MAX_TOLD):
            told = f"not imported, since it is no scalar: {tag} ({count} times)"
            shard.event("note", kind="import", severity="info", message=told)
        for problem in read.problems:
            shard.event("note", kind="drop", severity="warning", message=problem)


def _files(path: Path) -> Iterator[Path]:
    """Yield the event files at a path; of a huge folder only the beginning is looked at."""
    if path.is_dir():
        for file in islice(path.rglob("*"), _MAX_LOOKED_AT):
            if _MARK in file.name and file.is_file() and not file.is_symlink():
                yield file
    elif _MARK in path.name and path.is_file():
        yield path
