"""Compiled regions: notice that they run, and say which functions they came from.

Fused kernels do not pass through the dispatcher, so no observer of ops sees inside them. Where
they run, the sentinel has to run too.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.session import Session

_NOT_THE_USERS = ("torch/", "torch\\", "<")
_NAMED = 3


class CompileWatch:
    """Tells whether `torch.compile` has made code in this process; asking costs a look-up.

    Args:
        session: the recording; it is told once, by a note.

    Attributes:
        seen: whether compiled code was found.
    """

    def __init__(self, session: Session) -> None:
        self.seen = False
        self._session = session
        self._stats: Any = None

    def poll(self) -> bool:
        """Return whether there are compiled regions; notes the first time it is true."""
        if self.seen:
            return True
        if self._stats is None:
            dynamo = sys.modules.get("torch._dynamo.utils")
            counters = getattr(dynamo, "counters", None)
            if counters is None:
                return False
            self._stats = counters
        if not self._stats["stats"]["unique_graphs"]:
            return False
        self.seen = True
        self._session.note(
            "compiled",
            f"compiled regions run ({self.describe()}): their ops are checked at the step's "
            f"loss and gradients, and named by running a bad step again uncompiled",
        )
        return True

    def describe(self) -> str:
        """Return where the compiled functions are, the first few, for a note."""
        places = [f"{code.co_name} at {code.co_filename}:{code.co_firstlineno}" for code in codes()]
        if not places:
            return "in functions of libraries"
        more = len(places) - _NAMED
        return ", ".join(places[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def codes() -> list[CodeType]:
    """Return the code objects of the user's functions that dynamo has compiled."""
    convert = sys.modules.get("torch._dynamo.convert_frame")
    tracker = getattr(convert, "output_codes", None)
    inputs = getattr(convert, "input_codes", None)
    if tracker is None or inputs is None:
        return []
    found: list[CodeType] = []
    for reference in list(getattr(inputs, "seen", ())):
        code = reference()
        if code is not None and not _is_library(code.co_filename):
            found.append(code)
    return found


def _is_library(filename: str) -> bool:
    return filename.startswith("<") or "/torch/" in filename.replace("\\", "/")
