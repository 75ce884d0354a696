"""Starting up: the trace is opened while the toolkit is still being imported."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens_tui.worker import ReaderThread

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader
    from tracelens_tui.model import Opening


def start(path: str | None, *, at: int | None = None, paused: bool = False) -> int:
    """Open the application; see ``app.view``.

    Raises:
        TraceError: the trace cannot be opened.
    """
    if path is None or not _is_trace(Path(path)):
        from tracelens_tui.app import TraceLensApp

        return TraceLensApp(directory=Path(path).absolute() if path else None).run() or 0
    pages = ReaderThread(path, "tracelens-pages")
    readable = pages.submit(lambda reader: None)
    opening = pages.submit(partial(_open, at=at))
    from tracelens_tui.app import TraceLensApp

    try:
        readable.result()
    except BaseException:
        pages.close()
        raise
    app = TraceLensApp(Path(path).absolute(), pages=pages, opening=opening, paused=paused)
    return app.run() or 0


def _is_trace(path: Path) -> bool:
    """Whether a path is a trace, or nothing (which opening will tell), rather than a folder."""
    return not path.is_dir() or path.suffix == ".tltrace" or (path / "manifest.json").exists()


def _open(reader: TraceReader, at: int | None) -> Opening:
    from tracelens_tui.model import open_at

    return open_at(reader, at, None)
