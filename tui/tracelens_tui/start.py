"""Starting up: the trace is opened while the toolkit is still being imported."""

from __future__ import annotations

from functools import partial
from pathlib import Path


def start(path: str | None, *, at: int | None, directory: str | None, live: bool) -> int:
    """Open the application; see ``app.view``.

    Raises:
        TraceError: the trace cannot be opened.
    """
    if path is None:
        from tracelens_tui.app import TraceLensApp

        app = TraceLensApp(directory=Path(directory) if directory else None)
        return app.run() or 0
    from tracelens_tui.worker import ReaderThread

    pages = ReaderThread(path, "tracelens-pages")
    readable = pages.submit(lambda reader: None)
    opening = pages.submit(partial(_open, at=at))
    from tracelens_tui.app import TraceLensApp

    readable.result()
    return TraceLensApp(Path(path).absolute(), pages=pages, opening=opening).run() or 0


def _open(reader, at):  # type: ignore[no-untyped-def]
    from tracelens_tui.model import open_at

    return open_at(reader, at, None)
