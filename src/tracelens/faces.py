"""Finds the faces of a trace (terminal, browser) by entry point: the core names none of them."""

from __future__ import annotations

from collections.abc import Callable

from tracelens.errors import TraceLensError

ENTRY_POINT_GROUP = "tracelens.faces"


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

    for point in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            face: Callable[..., int] = point.load()
        except ImportError as error:
            missing = getattr(error, "name", None) or str(error)
            raise FaceError(
                f"{missing} is not installed: pip install 'tracelens-toolkit[tui,serve]'"
            ) from error
        return face
    raise FaceError(f"no face called {name!r} is installed: pip install 'tracelens-toolkit[tui]'")
