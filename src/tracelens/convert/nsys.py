"""Nsight Systems' sqlite exports as a trace: kernels, copies, calls, NVTX ranges, counters.

Read is a file, or a folder of several (one for each rank). A file that holds several processes
becomes a rank for each of those that used a GPU, MPI or NVTX.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tracelens.convert._columns import Imported
from tracelens.convert.bulktrace import fresh_trace
from tracelens.convert.newtrace import Explain
from tracelens.convert.nsys_database import BAD_SQLITE, HEADER, Database, is_nsight, pid_of
from tracelens.convert.nsys_process import ProcessRows
from tracelens.errors import TraceError
from tracelens.processes import MAX_RANKS
from tracelens.storage.bulk import BulkShard

Progress = Callable[[int, int, str], None]

_MPI_RANK = re.compile(r"^MPI Rank (\d+)$")
_FILE_RANK = re.compile(r"rank[._-]?(\d+)|[._-](\d+)$|(\d+)$", re.IGNORECASE)
_ACTIVE = (
    ("CUPTI_ACTIVITY_KIND_KERNEL", "globalPid"),
    ("CUPTI_ACTIVITY_KIND_MEMCPY", "globalPid"),
    ("CUPTI_ACTIVITY_KIND_RUNTIME", "globalTid"),
    ("NVTX_EVENTS", "globalTid"),
    ("MPI_COLLECTIVES_EVENTS", "globalTid"),
)
_MAX_TOLD = 16


@dataclass(frozen=True, slots=True)
class _Process:
    """A process of a file, and the rank it becomes."""

    file: Path
    pid: int
    rank: int
    epoch_ns: int


def sniff(path: Path) -> bool:
    """Tell whether a path is an export of Nsight Systems, or a folder of them."""
    if path.is_file():
        return path.suffix == ".nsys-rep" or _is_export(path)
    return path.is_dir() and any(_is_export(each) for each in path.glob("*.sqlite"))


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write an export as a trace.

    Args:
        path: a file, or a folder of files.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(processes done, processes in all, what)``.
        explain: not used: there are no values.

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
    """Write several exports as the ranks of one trace; see ``convert``.

    Args:
        paths: files, or folders of files.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(processes done, processes in all, what)``.
        explain: not used: there are no values.

    Raises:
        TraceError: nothing there can be read.
        ConfigError: ``out_path`` exists.
    """
    problems: list[str] = []
    files = [file for path in paths for file in _files(path)]
    processes = _processes(files, problems)
    if not processes:
        reason = problems[-1] if problems else f"{paths[0]}: no process that ran anything"
        raise TraceError(reason)
    epoch_ns = min(each.epoch_ns for each in processes)
    ops = steps = kernels = rows = 0
    with fresh_trace(out_path, force=force) as directory:
        for done, process in enumerate(processes):
            if progress is not None:
                progress(done, len(processes), f"{process.file.name}, process {process.pid}")
            with closing(Database(process.file, problems)) as database:
                shard = BulkShard(
                    directory,
                    process.rank,
                    epoch_unix_ns=epoch_ns,
                    world_size=len(processes),
                    framework="",
                    host=database.host(),
                    pid=process.pid,
                )
                with shard:
                    version = database.about().get("EXPORT_PRODUCT_VERSION", "")
                    told = f"from {process.file.name}, Nsight Systems {version}".rstrip()
                    shard.event("note", kind="import", severity="info", message=told)
                    offset_ns = process.epoch_ns - epoch_ns
                    reader = ProcessRows(database, process.pid, offset_ns, problems)
                    made = reader.write(shard)
            ops, kernels = ops + made.ops, kernels + made.kernels
            steps, rows = max(steps, made.steps), rows + shard.rows
        if not rows:
            reason = f": {problems[0]}" if problems else ""
            raise TraceError(f"{paths[0]}: the export holds no event{reason}")
    return Imported(ops, steps, 0, tuple(problems[:_MAX_TOLD]), kernels, rows)


def _is_export(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            if file.read(len(HEADER)) != HEADER:
                return False
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            listed = connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
            return is_nsight(frozenset(str(row[0]) for row in listed.fetchall()))
    except (OSError, *BAD_SQLITE):
        # One that is Nsight's by its name is refused by the import, with the reason.
        return path.suffix == ".sqlite" and path.exists()


def _files(path: Path) -> list[Path]:
    """Return the exports at a path.

    Raises:
        TraceError: it is a report that was not exported.
    """
    if path.suffix == ".nsys-rep":
        raise TraceError(
            f"{path}: Nsight's own format; export it first: nsys export --type sqlite {path.name}"
        )
    return [path] if path.is_file() else sorted(path.glob("*.sqlite"))


def _processes(files: list[Path], problems: list[str]) -> list[_Process]:
    found: list[_Process] = []
    for file in files:
        try:
            with closing(Database(file, problems)) as database:
                epoch_ns = database.epoch_unix_ns()
                ranks = _mpi_ranks(database)
                pids = _pids(database)
        except TraceError as error:
            problems.append(str(error))
            continue
        for pid in pids:
            wanted = ranks.get(pid)
            if wanted is None and len(pids) == 1 and len(files) > 1:
                wanted = _rank_in(file.stem)
            found.append(_Process(file, pid, _free(wanted, found, file, problems), epoch_ns))
    return sorted(found, key=lambda each: each.rank)


def _free(wanted: int | None, taken: list[_Process], file: Path, problems: list[str]) -> int:
    """Return the rank that is wanted, or the next that no other has."""
    ranks = {each.rank: each for each in taken}
    rank = wanted if wanted is not None else 0
    if not 0 <= rank < MAX_RANKS:
        problems.append(f"{file.name}: a rank of {rank} is none: given the next free")
        wanted, rank = None, 0
    if wanted is not None and wanted in ranks:
        other = ranks[wanted].file.name
        problems.append(f"{file.name} says rank {wanted}, as {other} does: given the next free")
    while rank in ranks:
        rank += 1
    return rank


def _rank_in(stem: str) -> int | None:
    matched = _FILE_RANK.search(stem)
    return int(next(each for each in matched.groups() if each)) if matched else None


def _mpi_ranks(database: Database) -> dict[int, int]:
    """Return the MPI rank of each process that tells it."""
    ranks = {}
    for pid, rank in database.rows("MPI_RANKS", ("globalPid", "rank")):
        if isinstance(pid, int) and isinstance(rank, int):
            ranks[pid_of(pid)] = rank
    for tid, text, named in database.rows("NVTX_EVENTS", ("globalTid", "text", "name:textId")):
        matched = _MPI_RANK.match(str(text or named or ""))
        if matched and isinstance(tid, int):
            ranks.setdefault(pid_of(tid), int(matched[1]))
    return ranks


def _pids(database: Database) -> list[int]:
    """Return the processes that did something, ascending."""
    found = {
        pid_of(row[0])
        for table, column in _ACTIVE
        for row in database.rows(table, (column,), distinct=True)
        if isinstance(row[0], int)
    }
    if not found and any(database.count(table) for table, _ in _ACTIVE):
        return [0]
    return sorted(found)
