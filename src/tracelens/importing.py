"""Another tool's recording as a trace, with what the analysis finds in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.convert.importers import Result, files_importer_of, importer_of

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter

Progress = Callable[[int, int, str], None]

_LOOKED_AT = 1 << 17
"""Records before a bad value that are searched for its cause."""


def import_recording(
    path: Path | Sequence[Path],
    out_path: Path,
    *,
    importer: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write another tool's recording as a trace.

    Args:
        path: its file or folder; several files are the ranks of one trace.
        out_path: the trace to be made.
        importer: a key of ``IMPORTERS``; told by what lies at the path if absent.
        force: replace a trace that is there.
        progress: called with ``(done, total, what)``.

    Raises:
        TraceError: nothing there can be imported.
        ConfigError: ``out_path`` exists.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    if len(paths) > 1:
        several = files_importer_of(paths, importer)
        return several(paths, out_path, force=force, progress=progress, explain=_explain)
    path = paths[0]
    convert = importer_of(path, importer)
    return convert(path, out_path, force=force, progress=progress, explain=_explain)


def _explain(writer: ShardWriter, sink: dict[str, Any]) -> dict[str, Any]:
    from tracelens.analysis import cause
    from tracelens.analysis.live import RingOps

    source = RingOps(writer.committed(_LOOKED_AT), writer.strings, rank=0)
    return cause.explain(source, sink)
