"""Compiled TensorFlow ops: a check that costs one pass, and a probe that measures and records.

Neither computes anything a program could see. They run on the CPU only, and not inside an XLA
cluster, where no custom op can be compiled: see `usable`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracelens.nativebuild import BuildError
from tracelens_tensorflow.native import build

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["BuildError", "Checks", "available", "check_op", "checks", "load", "usable", "why_not"]

CHECKABLE = frozenset(
    "float16 bfloat16 float32 float64 complex64 complex128 float8_e5m2 float8_e4m3fn".split()
)
"""Names of the dtypes that can hold a NaN or an Inf, and that the check op takes."""


def load() -> Any:
    """Return the module of generated op functions, compiling it at first use (about 30 s).

    Raises:
        BuildError: no compiler, an unsupported platform, or the build failed; one line.
    """
    return build.load()[0]


def available(*, compile: bool = True) -> bool:
    """Tell whether the ops can be used here.

    Args:
        compile: compile them if that has not been done; otherwise only what exists counts.
    """
    if not compile and not build.built():
        return False
    try:
        load()
    except BuildError:
        return False
    return True


def why_not() -> str:
    """Return why the ops are not available, in one line; empty if they are."""
    try:
        load()
    except BuildError as error:
        return str(error)
    return ""


def usable(graph: Any) -> bool:
    """Tell whether the ops may be put into a graph: not where XLA will compile it.

    Args:
        graph: a ``FuncGraph`` that is being, or has been, traced. A function that is made with
            ``jit_compile=True`` is not known by its graph: its maker has to ask for that.
    """
    while graph is not None:
        find = getattr(graph, "_get_control_flow_context", None)
        context = find() if find is not None else None
        while context is not None:
            if context.IsXLAContext():
                return False
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return True


def check_op(tensors: Sequence[tf.Tensor], slots: Sequence[int], name: str | None = None) -> Any:
    """Add a check of tensors to the current graph (or run it, in eager mode).

    Args:
        tensors: of dtypes in `CHECKABLE`.
        slots: a number for each, which `Checks.take` gives back for those found bad.
        name: of the op.

    Returns:
        The op, to be made a control output of the graph; None in eager mode.

    Raises:
        BuildError: the ops cannot be compiled here.
    """
    return load().trace_lens_check(inputs=list(tensors), slots=list(slots), name=name)


class Checks:
    """The sticky flag that check ops raise, read without a call into TensorFlow."""

    def __init__(self) -> None:
        library = build.load()[1]
        library.tracelens_check_block.restype = ctypes.c_uint64
        library.tracelens_check_log_size.restype = ctypes.c_int64
        self.address: int = library.tracelens_check_block()
        self._log_size: int = library.tracelens_check_log_size()
        self._block = (ctypes.c_int64 * (3 + self._log_size)).from_address(self.address)
        self._taken: int = self._block[1]

    @property
    def hits(self) -> int:
        """How many bad tensors were seen since the library was loaded."""
        return self._block[1]

    @property
    def checked(self) -> int:
        """How many tensors were looked at since the library was loaded."""
        return self._block[2]

    @property
    def pending(self) -> bool:
        """Whether a bad tensor was seen since `take` was last called (60 ns)."""
        return self._block[1] != self._taken

    def enable(self, on: bool) -> None:
        """Switch all check ops of the process on or off; off they cost their scheduling only."""
        self._block[0] = int(on)

    def take(self) -> list[int]:
        """Return the slots found bad since the last call, oldest first (at most the last 1024)."""
        hits = self._block[1]
        first = max(self._taken, hits - self._log_size)
        self._taken = hits
        return [self._block[3 + at % self._log_size] for at in range(first, hits)]


_checks: Checks | None = None


def checks() -> Checks:
    """Return the process's one reader of the flag.

    Raises:
        BuildError: the ops cannot be compiled here.
    """
    global _checks
    if _checks is None:
        _checks = Checks()
    return _checks
