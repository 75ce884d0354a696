"""XPlane profiles of TensorFlow and JAX (``*.xplane.pb``) as a trace, a rank for each host.

Read is a file, or a folder in which TensorFlow's profiler wrote: of several runs in
``plugins/profile/`` the last one. A profile of a host is held in memory as its bytes and as
columns of numbers, one host at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tracelens.convert._columns import Imported
from tracelens.convert.bulktrace import fresh_trace
from tracelens.convert.newtrace import Explain
from tracelens.convert.protowire import WireError
from tracelens.convert.xplane_host import HostRows
from tracelens.convert.xplane_profile import Profile, ProfiledKernel, ProfiledOp, read
from tracelens.convert.xplane_wire import ABSOLUTE_NS, Space, space
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard

__all__ = ["Profile", "ProfiledKernel", "ProfiledOp", "convert", "convert_files", "read", "sniff"]

Progress = Callable[[int, int, str], None]

_ENDING = ".xplane.pb"
_REPLACEMENT = "\ufffd".encode()
_LOOKED_AT_BYTES = 1 << 20
_MAX_TOLD = 16


def sniff(path: Path) -> bool:
    """Tell whether a path is an XPlane profile, or a folder that holds one."""
    if path.is_file():
        return path.name.endswith(_ENDING)
    return path.is_dir() and bool(_runs(path))


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write a profile as a trace.

    Args:
        path: a file, or the profiler's folder.
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
    """Write the profiles of several hosts as one trace; see ``convert``.

    Args:
        paths: files, or the profiler's folders.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(bytes read, bytes in all, what)``.
        explain: not used: a profile holds no values.

    Raises:
        TraceError: nothing there can be read.
        ConfigError: ``out_path`` exists.
    """
    problems: list[str] = []
    given = [file for path in paths for file in _files(path, problems)]
    epoch_ns, files = _epoch(_distinct(given, problems), problems)
    if not files:
        raise TraceError(problems[-1] if problems else f"{paths[0]}: no {_ENDING} file there")
    total = sum(each.stat().st_size for each in files)
    ops = steps = kernels = rows = done = 0
    with fresh_trace(out_path, force=force) as directory:
        for rank, file in enumerate(files):
            if progress is not None:
                progress(done, total, file.name)
            found = _read(file)
            host = found.hosts[0] if found.hosts else file.name[: -len(_ENDING)]
            if found.torn:
                problems.append(f"{file}: the rest is damaged and left out: {found.torn}")
            shard = BulkShard(
                directory,
                rank,
                epoch_unix_ns=epoch_ns,
                world_size=len(files),
                framework="tensorflow",
                host=host,
            )
            with shard:
                shard.event("note", kind="import", severity="info", message=f"from {file.name}")
                for line in found.warnings[:_MAX_TOLD]:
                    message = f"the profiler says: {line}"
                    shard.event("note", kind="profile", severity="warning", message=message)
                made = HostRows(found, epoch_ns, problems).write(shard)
            ops, kernels = ops + made.ops, kernels + made.kernels
            steps, rows = max(steps, made.steps), rows + shard.rows
            done += file.stat().st_size
        if not rows:
            raise TraceError(f"{paths[0]}: the profile holds no event")
    return Imported(ops, steps, 0, tuple(problems[:_MAX_TOLD]), kernels, rows)


def _runs(path: Path) -> list[list[Path]]:
    """Return the profiles in a folder: a list of hosts' files for each run, in order of name."""
    own = sorted(path.glob(f"*{_ENDING}"))
    if own:
        return [own]
    for pattern in (
        f"plugins/profile/*/*{_ENDING}",
        f"*/plugins/profile/*/*{_ENDING}",
        f"*/*{_ENDING}",
    ):
        runs: dict[Path, list[Path]] = {}
        for file in sorted(path.glob(pattern)):
            runs.setdefault(file.parent, []).append(file)
        if runs:
            return [runs[each] for each in sorted(runs)]
    return []


def _files(path: Path, problems: list[str]) -> list[Path]:
    if path.is_file():
        return [path]
    runs = _runs(path)
    if len(runs) > 1:
        left = ", ".join(each[0].parent.name for each in runs[:-1][-4:])
        problems.append(
            f"{path}: {len(runs)} runs, of which the last ({runs[-1][0].parent.name}) is "
            f"imported; name the folder of another to import it ({left})"
        )
    return runs[-1] if runs else []


def _distinct(files: list[Path], problems: list[str]) -> list[Path]:
    """Leave out files that are, byte for byte, another host's."""
    if len(files) < 2:
        return files
    seen: dict[str, Path] = {}
    for file in files:
        digest = hashlib.sha256()
        with open(file, "rb") as opened:
            while part := opened.read(_LOOKED_AT_BYTES):
                digest.update(part)
        first = seen.setdefault(digest.hexdigest(), file)
        if first is not file:
            problems.append(f"{file.name} is byte for byte {first.name}, and is imported once")
    return list(seen.values())


def _epoch(files: list[Path], problems: list[str]) -> tuple[int, list[Path]]:
    """Return the Unix time at which the first host's profile starts, and the readable files."""
    starts, readable = [], []
    for file in files:
        try:
            starts.append(_start(_read(file)))
            readable.append(file)
        except (WireError, OSError) as error:
            problems.append(_refusal(file, error))
    return min(starts, default=0), readable


def _start(found: Space) -> int:
    begin = found.start_unix_ns()
    lines = [line.time_ns for plane in found.planes for line in plane.lines()]
    absolute = [each for each in lines if each >= ABSOLUTE_NS]
    return min([begin, *absolute]) if begin else min(absolute, default=0)


def _read(file: Path) -> Space:
    return space(file.read_bytes(), lenient=True)


def _refusal(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{file}: cannot be read: {error.strerror or error}"
    with open(file, "rb") as opened:
        beginning = opened.read(_LOOKED_AT_BYTES)
    if beginning.count(_REPLACEMENT) > len(beginning) // 1000:
        told = "it was saved as UTF-8 text, which destroys it: copy the original as binary"
    else:
        told = f"damaged, or another format ({error})"
    return f"{file}: not an XPlane profile: {told}"
