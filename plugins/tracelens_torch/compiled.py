"""Compiled regions: notice that they run, and say which functions they came from.

Fused kernels do not pass through the dispatcher, so no observer of ops sees inside them. Where
they run, the sentinel has to run too.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
)

if TYPE_CHECKING:
    from tracelens.session import Session

_PACKAGES = ("tracelens", "tracelens_torch")
_CALLS_THE_USERS = frozenset(
    {
        "tracelens.api",
        "tracelens.decorate",
        "tracelens.session",
        "tracelens_torch.amp",
        "tracelens_torch.backend",
        "tracelens_torch.data",
        "tracelens_torch.dispatch",
        "tracelens_torch.guards",
        "tracelens_torch.handler",
        "tracelens_torch.hooks",
        "tracelens_torch.replay",
        "tracelens_torch.rerun",
        "tracelens_torch.roots",
        "tracelens_torch.sentinel",
        "tracelens_torch.sentinel_engine",
        "tracelens_torch.update",
    }
)
"""Modules with functions that run the program's code, which must compile as ever."""

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
        keep_out_of_dynamo()

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


def watch_compile(asked: Callable[[], None]) -> Callable[[], None]:
    """Call back when the program asks `torch.compile` for a region.

    What runs a bad step again has to see the first step from its beginning, so it must be ready
    before the region first runs.

    Args:
        asked: called each time, before the region is made.

    Returns:
        What leaves `torch.compile` as it was found.
    """
    original = torch.compile

    @functools.wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        asked()
        return original(*args, **kwargs)

    def uninstall() -> None:
        if torch.compile is compile:
            torch.compile = original

    torch.compile = compile
    return uninstall


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


def keep_out_of_dynamo() -> None:
    """Tell dynamo not to compile the functions of TraceLens when they run in a compiled region.

    An observer's Python side is called from anywhere, a compiled function's frame included, and
    whatever Python runs there is compiled unless it is marked.
    """
    skip = _FrameAction.SKIP
    alone = _FrameExecStrategy(skip, _FrameAction.DEFAULT)
    with_callees = _FrameExecStrategy(skip, skip)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES and module is not None:
            strategy = alone if name in _CALLS_THE_USERS else with_callees
            for code in _codes_of(module):
                set_code_exec_strategy(code, strategy)


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = list(vars(value).values()) if isinstance(value, type) else [value]
        for member in members:
            if isinstance(member, property):
                member = member.fget
            member = getattr(member, "__func__", member)
            member = getattr(member, "__wrapped__", member)
            if isinstance(member, FunctionType):
                yield from _nested(member.__code__)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _is_library(filename: str) -> bool:
    return filename.startswith("<") or Path(torch.__file__).parent in Path(filename).parents
