"""Starting up: the trace is opened while the toolkit is still being imported.

This is the door of the package: nothing here may import Textual before the reader has begun.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens.errors import TraceLensError
from tracelens_tui.worker import ReaderThread

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader
    from tracelens_tui.opening import Opening


def view(
    path: str | None = None,
    *,
    at: int | None = None,
    serve: str | None = None,
    paused: bool = False,
    program: Sequence[str] = (),
) -> int:
    """Open the terminal interface and return the exit code (the face of ``tracelens view``).

    Args:
        path: the trace, or a directory of runs; the current directory's runs if ``None``.
        at: id of the op to start at.
        serve: ``HOST:PORT`` to show it at in a browser instead.
        paused: the program that writes the trace stands still: it may be let go on
            (``faces.GO_ON``) or ended (``faces.GIVE_UP``).
        program: a command to run beside the screens, which writes the trace; its exit code is
            ours.

    Raises:
        TraceError: the trace cannot be opened.
    """
    # The package is part of every installation, the toolkit it is drawn with is not.
    if find_spec("textual") is None:
        raise TraceLensError("it needs Textual: pip install 'tracelens-toolkit[tui]'")
    if serve is not None:
        try:
            from tracelens_tui.serve import serve as serve_at
        except ImportError as error:
            raise TraceLensError(
                f"{error.name} is not installed: pip install 'tracelens-toolkit[serve]'"
            ) from error
        return serve_at(path, at=at, address=serve)
    return start(path, at=at, paused=paused, command=program)


def start(
    path: str | None,
    *,
    at: int | None = None,
    paused: bool = False,
    command: Sequence[str] = (),
) -> int:
    """Open the application; see ``view``.

    Raises:
        TraceError: the trace cannot be opened.
    """
    if path is not None and command:
        return _beside(Path(path).absolute(), command)
    if path is None or not _is_trace(Path(path)):
        from tracelens_tui.app import TraceLensApp

        return TraceLensApp(directory=Path(path).absolute() if path else None).run() or 0
    # Importing makes many objects and no rubbish; the application collects again once it is drawn.
    gc.disable()
    pages = ReaderThread(path, "tracelens-pages", whole_shards=False)
    readable = pages.submit(lambda reader: None)
    opening = pages.submit(partial(_open, at=at))
    from tracelens_tui.app import TraceLensApp

    try:
        readable.result()
    except BaseException:
        gc.enable()
        pages.close()
        raise
    app = TraceLensApp(Path(path).absolute(), pages=pages, opening=opening, paused=paused)
    return app.run() or 0


def _beside(path: Path, command: Sequence[str]) -> int:
    """Run a program beside the screens; leaving them leaves it running until it ends."""
    import sys

    from tracelens_tui.app import TraceLensApp

    app = TraceLensApp(path, command=command)
    app.run()
    if app.program is None:
        return 1
    if app.program.exit_code is None:
        sys.stderr.write("tracelens: the program goes on; ctrl+c interrupts it\n")
    code = app.program.wait()
    sys.stderr.write(f"tracelens: trace {path}, output {app.program.log}\n")
    return code


def _is_trace(path: Path) -> bool:
    """Whether a path is a trace, or nothing (which opening will tell), rather than a folder."""
    return not path.is_dir() or path.suffix == ".tltrace" or (path / "manifest.json").exists()


def _open(reader: TraceReader, at: int | None) -> Opening:
    from tracelens_tui.opening import open_at

    return open_at(reader, at, None)
