"""What the debugger's commands work on while a program stands still: the trace so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.errors import SessionError
from tracelens.events import NO_ID, OpFlag, TensorRecord

if TYPE_CHECKING:
    from tracelens.command import Context


class Recording:
    """One rank's trace, read from its files even while this very process writes them.

    Attributes:
        path: the trace.
        rank: whose ops.
        op_id: the op to start at, later the one the commands are at.
        stale: the program has run on since the trace was read.
    """

    def __init__(self, path: Path, rank: int, op_id: int = NO_ID) -> None:
        self.path = path
        self.rank = rank
        self.op_id = op_id
        self.stale = False
        self._context: Context | None = None

    def context(self, local: Callable[[str], Any] | None = None) -> Context:
        """Return the context of the commands; the trace is opened at the first call.

        Args:
            local: evaluates an expression in the frame of the paused program.

        Raises:
            TraceError: the trace cannot be read.
        """
        if self._context is None:
            from tracelens.command import Context
            from tracelens.cursor import Cursor
            from tracelens.storage.reader import open_trace

            cursor = Cursor(open_trace(self.path), self.rank)
            if cursor.goto(op_id=self.op_id).reason == "missing":
                # Without a first cause, what ran last is closest to where the program stands.
                cursor.goto(index=max(0, cursor.count - 1))
            self._context = Context(cursor)
        elif self.stale:
            self._context.cursor.refresh()
        self.stale = False
        self._context.local = local
        self.op_id = self._context.cursor.op_id
        return self._context

    def values(self) -> dict[str, Any]:
        """Return the tensors of the op as ``inputs`` and ``outputs``.

        A tensor whose values were stored is an array, any other the record of its statistics.
        """
        op = self.context().cursor.op
        if op is None:
            return {}
        return {
            "inputs": [self._value(tensor) for tensor in op.inputs],
            "outputs": [self._value(tensor) for tensor in op.outputs],
            "compiled": bool(op.flags & OpFlag.COMPILED),
        }

    def _value(self, tensor: TensorRecord) -> Any:
        from tracelens.actions.values import stored_value

        values = stored_value(self.context(), tensor.value_id)
        return tensor if values is None else values


def latest() -> Recording:
    """Return the open session's recording, or else the last one of this process.

    Raises:
        SessionError: nothing was recorded in this process.
    """
    from tracelens import session

    open_now = session.current()
    if open_now is not None:
        return Recording(open_now.path, open_now.rank)
    if session.last_place is None:
        raise SessionError("this process recorded nothing: open a session with tl.trace(...)")
    return Recording(*session.last_place)
