"""Which Python frames are the user's own, and frames for lines whose own frame is gone."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

_PACKAGE = re.compile(r".*/(?:site|dist)-packages/([^/]+?)(?:\.py)?(?:/|$)")
_STANDARD = re.compile(r".*/lib/python3[^/]*/(?!(?:site|dist)-packages/)|<frozen ")

_FRAMEWORKS = frozenset(
    "torch functorch torchgen torchvision torchaudio tensorflow keras tf_keras tensorboard optree "
    "tracelens tracelens_torch tracelens_tensorflow tracelens_tui pytest_tracelens "
    "_pytest pytest pluggy contextlib runpy threading concurrent".split()
)
"""Top-level packages whose frames are nobody's idea of "my code"; threads begin in the last two."""

HIDDEN_MODULES = [pattern for name in sorted(_FRAMEWORKS) for pattern in (name, f"{name}.*")]
"""Patterns of module names in which a debugger does not stop while it steps."""


def is_users(frame: FrameType) -> bool:
    """Whether a frame is neither TraceLens's, nor a framework's, nor a test runner's."""
    root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return root not in _FRAMEWORKS


def user_frame(frame: FrameType | None = None) -> FrameType | None:
    """Return the innermost frame of the user's, from a frame outwards; from the caller's if none.

    ``None`` on a thread that runs no code of the user's, such as an autograd engine's.
    """
    found = sys._getframe(1) if frame is None else frame
    while found is not None and not is_users(found):
        found = found.f_back  # type: ignore[assignment]
    return found


def runs_in(frame: FrameType | None, file: str, line: int, function: str) -> bool:
    """Whether a frame, or one that called it, runs the function that a source line is in."""
    name = function.rpartition(".")[2]
    while frame is not None:
        code = frame.f_code
        # The lines of a module's own code lie around those of its functions: names tell them apart.
        if code.co_filename == file and code.co_name == name:
            lines = [number for _, _, number in code.co_lines() if number is not None]
            if lines and min(lines) <= line <= max(lines):
                return True
        frame = frame.f_back
    return False


def at_line(
    file: str,
    line: int,
    function: str,
    values: Mapping[str, Any],
    do: Callable[[FrameType], None],
) -> None:
    """Call a function with a frame that stands at a source line.

    It is for a line that built an op of a graph: its own frame is gone when the graph runs. The
    frame has the globals of that file's module, if it is still loaded, and ``values`` as locals;
    its caller is the caller's frame.

    Args:
        file: the source file.
        line: 1-based line.
        function: name of the function, for display.
        values: locals of the frame.
        do: called with the frame while it exists.
    """
    modules = list(sys.modules.values())
    owner = next((m for m in modules if getattr(m, "__file__", None) == file), None)
    code = compile("__tracelens_stop__()", file, "exec")
    code = code.replace(co_firstlineno=line, co_name=function.rpartition(".")[2] or "<graph>")
    namespace: dict[str, Any] = dict(vars(owner)) if owner is not None else {"__name__": "graph"}
    namespace["__tracelens_stop__"] = lambda: do(sys._getframe(1))
    exec(code, namespace, dict(values))  # the code is the one call above, never the file's


def package_of(file: str) -> str:
    """Return what a file belongs to if it is not the user's own.

    Examples:
        >>> package_of("/venv/lib/python3.11/site-packages/torch/_tensor.py")
        'torch'
        >>> package_of("/usr/lib/python3.11/threading.py"), package_of("/home/me/train.py")
        ('python', '')
    """
    installed = _PACKAGE.match(file)
    if installed is not None:
        return installed[1]
    if file.startswith(str(Path(__file__).parent) + os.sep):
        return "tracelens"
    return "python" if _STANDARD.match(file) else ""
