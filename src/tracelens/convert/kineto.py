"""Kineto's profiles of PyTorch and other Chrome traces (``*.json``, packed or not) as a trace.

Every dialect from 2020 to today, whole or damaged: what can be read is imported, what cannot is
counted and named. A file is a rank: the one it names (``distributedInfo``), else the one in its
file's name, else the next free one. A second file of a rank is left out and named, as two profiles
of one process do not add up to one.

Memory holds some megabytes of text and a few dozen bytes an event, one file at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tracelens.convert._columns import Imported
from tracelens.convert._textfile import beginning
from tracelens.convert.bulktrace import fresh_trace
from tracelens.convert.kineto_bytes import Source, sources
from tracelens.convert.kineto_file import ProfileFile
from tracelens.convert.kineto_peek import peek
from tracelens.convert.kineto_ranks import is_unix, missing, ranges_text, rank_in_name
from tracelens.convert.newtrace import Explain
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard

__all__ = ["convert", "convert_files", "sniff"]

Progress = Callable[[int, int, str], None]

_ENDINGS = (".json", ".json.gz", ".tar.gz", ".tgz", ".zip")
_IN_HEAD = re.compile(
    rb'"traceEvents"|"schemaVersion"|"deviceProperties"|"distributedInfo"|'
    rb'\A(?:\xef\xbb\xbf)?\s*\[\s*(?:\{.{0,16384}?"ph"\s*:|\Z)',
    re.DOTALL,
)
_ARCHIVES = (b"PK\x03\x04",)
_SECOND_NS = 1_000_000_000
_MAX_TOLD = 32


def sniff(path: Path) -> bool:
    """Tell whether a path is a Chrome trace, an archive of such, or a folder that holds some."""
    if path.is_dir():
        return any(_looks_right(each) for each in _in_folder(path)[:8])
    return path.is_file() and _looks_right(path)


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write a profile, or all of a folder or archive, as a trace.

    Args:
        path: a file, an archive or a folder.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(bytes read, bytes in all, what)``.
        explain: not used: a profile holds no values.

    Raises:
        TraceError: nothing there can be read.
        ConfigError: ``out_path`` exists.
    """
    return convert_files([path], out_path, force=force, progress=progress, explain=explain)


def convert_files(
    paths: Sequence[Path],
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write the profiles of several ranks as one trace; see ``convert``."""
    problems: list[str] = []
    files, epoch_ns = _in_order(_all_sources(paths, problems))
    total = sum(path.stat().st_size for path in {each.path for each in files})
    ops = steps = kernels = rows = 0
    taken: dict[int, str] = {}
    world_size = 0
    with fresh_trace(out_path, force=force) as directory:
        done = 0
        for source in files:

            def told(read: int, before: int = done, name: str = source.name) -> None:
                if progress is not None:
                    progress(before + read, total, name)

            try:
                file = ProfileFile(source, told)
            except TraceError as error:
                problems.append(str(error))
                done += _size(source)
                continue
            done += _size(source)
            about = file.about
            rank = _rank(about.rank, source, taken, len(files))
            if rank is None:
                rank = next(each for each in range(len(taken) + 1) if each not in taken)
                if len(files) > 1:
                    problems.append(f"{source.name}: says no rank: imported as rank {rank}")
            if rank in taken:
                problems.append(
                    f"{source.name}: rank {rank} is imported from {taken[rank]} already: left out "
                    "(import it by itself)"
                )
                continue
            taken[rank] = source.name
            world_size = max(world_size, about.world_size)
            if epoch_ns is None:
                epoch_ns = file.start_ns
            shard = BulkShard(
                directory,
                rank,
                epoch_unix_ns=epoch_ns,
                world_size=_world_size(rank, about.world_size, len(files)),
                framework=file.framework,
                host=about.host,
            )
            with shard:
                origin = f"from {Path(source.name).name}"
                if about.world_size > 1:
                    origin += f", rank {rank} of {about.world_size}"
                shard.event("note", kind="import", severity="info", message=origin)
                for name in dict.fromkeys(filter(None, about.devices)):
                    message = f"device: {name}"
                    shard.event("note", kind="device", name=name, severity="info", message=message)
                if not is_unix(file.start_ns):
                    message = "the file does not say when it was recorded: its times are relative"
                    shard.event("note", kind="clock", severity="info", message=message)
                made = file.write(shard, epoch_ns)
            problems += file.problems.lines()
            ops, kernels = ops + made.ops, kernels + made.kernels
            steps, rows = max(steps, made.steps), rows + shard.rows
            del file
        if not taken:
            raise TraceError(problems[-1] if problems else f"{paths[0]}: no profile there")
        problems += _absent(taken, world_size)
    if len(problems) > _MAX_TOLD:
        problems[_MAX_TOLD:] = [f"and {len(problems) - _MAX_TOLD} more"]
    return Imported(ops, steps, 0, tuple(problems), kernels, rows)


def _all_sources(paths: Sequence[Path], problems: list[str]) -> list[Source]:
    """Return the files at paths; what cannot be read is told, unless it is all there is."""
    files: list[Source] = []
    for path in paths:
        each = _in_folder(path) if path.is_dir() else [path]
        if not each:
            problems.append(f"{path}: no profile there (*.json, *.json.gz)")
        for file in each:
            try:
                files += sources(file)
            except TraceError as error:
                problems.append(str(error))
    if not files:
        raise TraceError(problems[-1] if problems else "no file was named")
    return files


def _in_order(files: list[Source]) -> tuple[list[Source], int | None]:
    """Return those that name their rank first, and the epoch of their trace.

    It is the second in which the first of them starts; of a single file its first event.
    """
    if len(files) == 1:
        return files, None
    seen = [(peek(each), each) for each in files]
    starts = [look.start_ns for look, _ in seen if look.start_ns is not None]
    first = min(starts, default=None)
    order = sorted(seen, key=lambda pair: pair[0].rank is None)
    return [each for _, each in order], None if first is None else first - first % _SECOND_NS


def _in_folder(path: Path) -> list[Path]:
    found = [each for each in path.iterdir() if each.is_file() and each.name.endswith(_ENDINGS)]
    return sorted(found, key=lambda each: (_natural(each.name), each.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort ``rank2`` before ``rank10``."""
    return [
        (int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d{1,18})", name)
    ]


def _looks_right(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError:
        return False
    if head in _ARCHIVES or path.name.lower().endswith((".tar.gz", ".tgz", ".tar")):
        return path.name.lower().endswith((".zip", ".tar.gz", ".tgz", ".tar"))
    return _IN_HEAD.search(beginning(path)) is not None


def _rank(told: int | None, source: Source, taken: dict[int, str], files: int) -> int | None:
    """Return a file's rank: what it says, else its name; ``None`` if neither does."""
    if told is None and files > 1:
        return rank_in_name(source.name)
    return told


def _world_size(rank: int, told: int, files: int) -> int:
    """Return how many ranks the trace should have; 0 if that is not known.

    Who imports one file of many asks for that rank alone: the others are not missing.
    """
    if files == 1:
        return 0 if rank else 1
    return told


def _absent(taken: dict[int, str], world_size: int) -> list[str]:
    if len(taken) < 2 or world_size <= len(taken):
        return []
    absent = missing(taken, world_size)
    word = "rank" if len(absent) == 1 else "ranks"
    return [f"{word} {ranges_text(absent)} of {world_size} missing: {len(absent)} not imported"]


def _size(source: Source) -> int:
    return 0 if source.member else source.path.stat().st_size
