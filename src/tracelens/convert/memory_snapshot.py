"""Memory snapshots of PyTorch as a trace: who allocated what, when, from which line.

Read are the pickles of ``torch.cuda.memory._dump_snapshot`` (without unpickling them) and the
JSON of ``torch.profiler``'s ``export_memory_timeline(..., "raw.json")``; a folder of snapshots
has one for each rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tracelens.convert._columns import Imported
from tracelens.convert._textfile import beginning, whole
from tracelens.convert.bulktrace import fresh_trace
from tracelens.convert.memory_snapshot_reader import PickleRefused, read
from tracelens.convert.memory_snapshot_rows import SnapshotRows, earliest_ns
from tracelens.convert.memory_snapshot_timeline import read_timeline
from tracelens.convert.newtrace import Explain
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard

Progress = Callable[[int, int, str], None]

_TIMELINE = re.compile(rb"^\s*\[\s*\[\s*-?\d+\s*,\s*[1-4]\s*,\s*-?\d+\s*,\s*\d+\s*\]")
_ENDINGS = (".pickle", ".pkl", ".pickle.gz", ".pkl.gz")
_PROTOCOL = b"\x80"
_KEYS = (b"segments", b"device_traces")
_RANK = re.compile(r"rank[._-]?(\d{1,5})(?!\d)", re.IGNORECASE)


def sniff(path: Path) -> bool:
    """Tell whether a path is a memory snapshot, a memory timeline, or a folder of snapshots."""
    if path.is_dir():
        files = [each for each in path.iterdir() if each.name.endswith(_ENDINGS)]
        return bool(files) and all(_is_pickle(each) for each in files)
    return path.is_file() and (_is_pickle(path) or bool(_TIMELINE.match(beginning(path))))


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write a snapshot or timeline as a trace.

    Args:
        path: the file, or a folder of snapshots.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(files done, files in all, what)``.
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
    """Write several snapshots as the ranks of one trace; see ``convert``.

    Args:
        paths: files, or folders of snapshots; one timeline.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(files done, files in all, what)``.
        explain: not used: there are no values.

    Raises:
        TraceError: nothing there can be read.
        ConfigError: ``out_path`` exists.
    """
    problems: list[str] = []
    path = paths[0]
    if len(paths) == 1 and path.is_file() and not _is_pickle(path):
        return _timeline(path, out_path, force, problems)
    files = [file for each in paths for file in _files(each)]
    snapshots: dict[int, tuple[Path, dict[str, object]]] = {}
    for file in files:
        try:
            found = _snapshot(file)
        except TraceError as error:
            if len(files) == 1:
                raise
            problems.append(str(error))
            continue
        snapshots[_rank(file, snapshots, problems)] = file, found
    if not snapshots:
        raise TraceError(problems[-1] if problems else f"{path}: no snapshot there")
    epoch_ns = min(earliest_ns(found) for _, found in snapshots.values())
    rows = 0
    with fresh_trace(out_path, force=force) as directory:
        for done, rank in enumerate(sorted(snapshots)):
            file, found = snapshots[rank]
            if progress is not None:
                progress(done, len(snapshots), file.name)
            shard = BulkShard(
                directory, rank, epoch_unix_ns=epoch_ns, world_size=len(snapshots),
                framework="torch", host="",
            )  # fmt: skip
            with shard:
                message = f"from {file.name}, a memory snapshot of PyTorch"
                shard.event("note", kind="import", severity="info", message=message)
                SnapshotRows(found, epoch_ns, problems).write(shard)
            rows += shard.rows
        if not rows:
            raise TraceError(
                f"{path}: the snapshot holds no allocation; was the program on a GPU, and "
                "torch.cuda.memory._record_memory_history() called?"
            )
    return Imported(0, 0, 0, tuple(problems), 0, rows)


def _timeline(path: Path, out_path: Path, force: bool, problems: list[str]) -> Imported:
    timeline = read_timeline(path, whole(path), problems)
    with fresh_trace(out_path, force=force) as directory:
        shard = BulkShard(directory, epoch_unix_ns=timeline.epoch_ns, framework="torch", host="")
        with shard:
            message = f"from {path.name}, a memory timeline of torch.profiler: device not told"
            shard.event("note", kind="import", severity="info", message=message)
            timeline.write(shard)
    return Imported(0, 0, 0, tuple(problems), 0, shard.rows)


def _is_pickle(path: Path) -> bool:
    head = beginning(path)
    if head[:1] != _PROTOCOL:
        return False
    return path.name.endswith(_ENDINGS) or any(key in head[:4096] for key in _KEYS)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(each for each in path.iterdir() if each.name.endswith(_ENDINGS))


def _rank(file: Path, taken: dict[int, tuple[Path, dict[str, object]]], problems: list[str]) -> int:
    matched = _RANK.search(file.name)
    rank = int(matched[1]) if matched else len(taken)
    if rank in taken and matched:
        problems.append(f"{file.name} says rank {rank}, as {taken[rank][0].name} does")
    while rank in taken:
        rank += 1
    return rank


def _snapshot(path: Path) -> dict[str, object]:
    try:
        found = read(whole(path))
    except PickleRefused as error:
        raise TraceError(f"{path}: not a memory snapshot of PyTorch: {error}") from None
    if not isinstance(found, dict) or not any(key.decode() in found for key in _KEYS):
        raise TraceError(
            f"{path}: a pickle, but not of torch.cuda.memory._dump_snapshot: it has no segments"
        )
    return found
