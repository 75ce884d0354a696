"""The runs of a directory, each in a line: state, size, steps, verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tracelens.errors import TraceLensError
from tracelens.storage.reader import open_trace
from tracelens_tui.opening import state_of

SUFFIX = ".tltrace"
_MAX_DEPTH = 3
_MAX_RUNS = 2_000


@dataclass(frozen=True, slots=True)
class Run:
    """One trace.

    Attributes:
        path: where it is.
        changed_unix_s: when it was last written to.
        state: ``live``, ``closed``, ``killed`` …, ``unreadable``; empty until it was looked into.
        steps: how many steps it holds.
        ranks: how many processes recorded.
        findings: errors found while recording; ``None`` if that is not known.
        size_bytes: on disk.
        framework: what was recorded.
        problem: why it cannot be read.
    """

    path: Path
    changed_unix_s: float
    state: str = ""
    steps: int = 0
    ranks: int = 0
    findings: int | None = None
    size_bytes: int = 0
    framework: str = ""
    problem: str = ""

    @property
    def verdict(self) -> str:
        """What became of the run, in a word or two."""
        if self.problem:
            return self.problem
        if self.findings is None:
            return ""
        if self.findings:
            return f"✖ {self.findings} finding{'s' if self.findings > 1 else ''}"
        return "✓ clean" if self.state == "closed" else "no finding"


def find(directory: Path) -> list[Run]:
    """Return the traces below a directory, the newest first; nothing in them is read yet."""
    runs = [Run(path, _changed(path)) for path in _walk(directory, _MAX_DEPTH)]
    runs.sort(key=lambda run: -run.changed_unix_s)
    return runs[:_MAX_RUNS]


def look_into(run: Run) -> Run:
    """Read what a line shows; never raises."""
    size = sum(_size(path) for path in run.path.rglob("*"))
    try:
        with open_trace(run.path) as reader:
            shards = reader.shards()
            errors = [f for f in reader.findings() if f.get("severity") == "error"]
            return replace(
                run,
                state=state_of(reader),
                steps=len(reader.steps(rank=reader.ranks()[0])) if shards else 0,
                ranks=len(reader.ranks()),
                findings=len(errors),
                size_bytes=size,
                framework=", ".join(sorted({shard.framework for shard in shards})),
            )
    except TraceLensError as error:
        problem = str(error).removeprefix(f"{run.path}: ").removeprefix(f"{run.path} ")
        return replace(run, state="unreadable", size_bytes=size, problem=problem)


def age(changed_unix_s: float) -> str:
    """Return how long ago something was, in at most eight characters.

    >>> age(time.time() - 90)
    '1 min'
    """
    seconds = max(0.0, time.time() - changed_unix_s)
    for factor, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= factor:
            return f"{seconds / factor:.0f} {unit}" if factor != 60 else f"{seconds // 60:.0f} min"
    return f"{seconds:.0f} s"


def _walk(directory: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            continue
        if entry.name.endswith(SUFFIX):
            yield Path(entry.path)
        elif depth > 0 and (entry.name == ".tracelens" or not entry.name.startswith((".", "_"))):
            yield from _walk(Path(entry.path), depth - 1)


def _changed(path: Path) -> float:
    times = [_mtime(path), _mtime(path / "_shards"), _mtime(path / "_live")]
    return max(times)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        info = path.lstat()
    except OSError:
        return 0
    # A ring is a sparse file: what counts is what it takes on disk.
    return min(info.st_size, info.st_blocks * 512)
