"""Finds the faces of a trace (terminal, browser) by entry point: the core names none of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from tracelens.errors import TraceLensError

ENTRY_POINT_GROUP = "tracelens.faces"
_DISTRIBUTION = "tracelens-toolkit"

GO_ON = 64
"""Exit code of a face shown while a program stands still: let it go on."""

GIVE_UP = 65
"""Exit code of a face shown while a program stands still: end it."""


class FaceError(TraceLensError):
    """A face is not installed, or cannot be loaded."""


def load_face(name: str) -> Callable[..., int]:
    """Return a face's function, which opens it and returns an exit code.

    Args:
        name: ``"tui"``.

    Raises:
        FaceError: it is not installed; the message says how to install it.
    """
    from importlib import metadata

    try:
        # Our own distribution first: looking into all that are installed takes 30 ms.
        own = metadata.distribution(_DISTRIBUTION).entry_points
        points = own.select(group=ENTRY_POINT_GROUP, name=name)
    except metadata.PackageNotFoundError:
        points = None
    for point in points or metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            face: Callable[..., int] = point.load()
        except ImportError as error:
            missing = getattr(error, "name", None) or str(error)
            raise FaceError(
                f"{missing} is not installed: pip install 'tracelens-toolkit[tui,serve]'"
            ) from error
        return face
    raise FaceError(f"no face called {name!r} is installed: pip install 'tracelens-toolkit[tui]'")


def show_paused(path: Path, op_id: int) -> int:
    """Show the terminal interface while the program that writes the trace stands still.

    A face that takes ``paused`` may let the program go on or end it.

    Args:
        path: the trace.
        op_id: the op to start at.

    Returns:
        ``GO_ON``, ``GIVE_UP``, or anything else to come back to the prompt.

    Raises:
        FaceError: it is not installed.
    """
    face = load_face("tui")
    more = {"paused": True} if "paused" in inspect.signature(face).parameters else {}
    return face(str(path), at=op_id if op_id >= 0 else None, **more)
