"""Keeps what led to the present: variables as they were some calls ago, and the calls since.

A snapshot holds the variables' buffers by reference: the runtime copies a buffer that is held
before it writes to the variable, so a snapshot costs one copy of what the next call writes. It is
taken every so many calls, chosen so that this stays a small share of the time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tensorflow.python.eager import context
from tensorflow.python.ops import resource_variable_ops

from tracelens_tensorflow.tensors import read_variable, variable_dtype, write_variable

COST_SHARE = 0.01
"""The share of the program's time that snapshots may take."""

MAX_CALLS = 200
"""Calls that are kept, at most: repeating them is what a replay costs."""

MAX_REPEAT_NS = 2_000_000_000
"""How long the kept calls may have taken together."""

MAX_HISTORY_BYTES = 32 << 20
"""What the arguments and batches of the kept calls may hold together."""

MAX_RESULT_BYTES = 64 << 10
"""What the results of an earlier call may hold together."""

MAX_SNAPSHOT_BYTES = 1 << 30
"""Variables beyond this are not kept: the memory is the program's."""

COPY_BYTES_PER_NS = 4.0
"""How fast a buffer is copied when it is written while a snapshot holds it (4 GB/s: fresh pages
are slower than copies within the caches)."""


@dataclass(slots=True)
class Entry:
    """A call that was kept.

    Attributes:
        call: the call.
        patches: variables that something else wrote before it: handles and values.
        size_bytes: what its arguments and batches hold.
    """

    call: Any
    patches: list[tuple[Any, Any]] = field(default_factory=list)
    size_bytes: int = 0

    def let_go(self) -> None:
        """The call is history: only small results are worth keeping, to compare with."""
        if sum(map(size_bytes, self.call.result or ())) > MAX_RESULT_BYTES:
            self.call.result = None

    def apply(self) -> None:
        """Write the variables that something else wrote before the call."""
        for handle, value in self.patches:
            write_variable(handle, value)


class Values:
    """The values of variables at one moment, by reference.

    Args:
        handles: of the variables.
    """

    def __init__(self, handles: Iterable[Any]) -> None:
        self._held: dict[int, tuple[Any, Any]] = {}
        self.missing = 0
        for handle in handles:
            dtype = variable_dtype(handle)
            value = read_variable(handle, dtype) if dtype else None
            if value is None:
                self.missing += 1
            else:
                self._held[handle._id] = (handle, value)

    def of(self, handle: Any) -> Any | None:
        """Return a variable's value, ``None`` if it is not held."""
        held = self._held.get(handle._id)
        return None if held is None else held[1]

    def __iter__(self) -> Any:
        return iter(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """How much memory the values take."""
        return sum(size_bytes(value) for _, value in self)

    def restore(self) -> None:
        """Write the values back."""
        for handle, value in self:
            write_variable(handle, value)


_generations = itertools.count()


class History:
    """The calls since the last snapshot, and the snapshot.

    Attributes:
        entries: the calls, oldest first.
        values: the variables before the first of them; ``None`` before the first snapshot.
        every: calls from one snapshot to the next.
        generation: of the last snapshot; no two histories of a process share one, since what is
            known of a function outlives a session.
        dropped: why the present call cannot be repeated from a known state; empty if it can.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.values: Values | None = None
        self.dropped = ""
        self._handles: dict[int, Any] = {}
        self._used: dict[int, Any] = {}
        self._read: dict[int, Any] = {}
        self._dirty: dict[int, Any] = {}
        self._size_bytes = 0
        self._cost_ns = 0.0
        self._spent_ns = 0
        self._began_ns = 0
        self.every = 1
        self.generation = next(_generations)
        self._latest: Entry | None = None
        self._unfinished = False

    def uses(self, written: Iterable[Any], read: Iterable[Any]) -> None:
        """Tell which variables the next call uses; once between snapshots is enough.

        Args:
            written: handles of the variables that it writes.
            read: handles of those that it only reads.
        """
        writes = {handle._id: handle for handle in written}
        if not writes.keys() <= self._handles.keys():
            self.restart()
            self._handles.update(writes)
        self._used.update(writes)
        self._read.update((handle._id, handle) for handle in read)

    def before(self, call: Any, data: Iterable[Any]) -> None:
        """A call is about to be made.

        Args:
            call: the call.
            data: the arguments that hold values.
        """
        if self._unfinished:
            self.restart()  # A call raised: how much of it was done is unknown.
        if self.values is None or self._full():
            self._take()
        entry = Entry(call, size_bytes=sum(map(size_bytes, data)))
        if self._dirty:
            self._patch(entry)
        self.entries.append(entry)
        self._size_bytes += entry.size_bytes
        if self._latest is not None:
            self._latest.let_go()
        self._latest = entry
        self._unfinished = True
        self._began_ns = time.perf_counter_ns()

    def after(self, call: Any, *, wrote: bool) -> None:
        """A call was made.

        Args:
            call: the call.
            wrote: it writes variables; one that does not need not be repeated.
        """
        if self._latest is None or self._latest.call is not call:
            return
        self._unfinished = False
        took_ns = time.perf_counter_ns() - self._began_ns
        if not wrote:
            entry = self.entries.pop()
            self._size_bytes -= entry.size_bytes
            self._dirty.update((handle._id, handle) for handle, _ in entry.patches)
            return
        if call.kept:
            batches = call.kept.values()
            extra = sum(size_bytes(t) for runs in batches for outputs in runs for t in outputs)
            self.entries[-1].size_bytes += extra
            self._size_bytes += extra
        self._spent_ns += took_ns
        mean_ns = max(self._spent_ns / len(self.entries), 1.0)
        wanted = self._cost_ns / (COST_SHARE * mean_ns)
        self.every = int(max(1, min(wanted, MAX_CALLS, MAX_REPEAT_NS / mean_ns)))

    def until(self, call: Any) -> list[Entry]:
        """Return the calls to repeat, the given one last.

        Args:
            call: one of those kept, or the latest; any other is taken to have come last.
        """
        for place, entry in enumerate(self.entries):
            if entry.call is call:
                return self.entries[: place + 1]
        last = self._latest
        return [*self.entries, last if last is not None and last.call is call else Entry(call)]

    @property
    def latest(self) -> Any | None:
        """The call that was made last."""
        return None if self._latest is None else self._latest.call

    def dirty(self, handle: Any) -> None:
        """Something other than a call writes a variable."""
        key = handle._id
        if key in self._handles:
            self._dirty[key] = handle
        elif key in self._read:
            self._handles[key] = handle
            self.restart()  # The snapshot does not have what it held before.

    def restart(self) -> None:
        """Take a new snapshot before the next call."""
        self.values = None
        self.entries.clear()
        self._latest = None

    @property
    def handles(self) -> list[Any]:
        """The variables that the calls write."""
        return list(self._handles.values())

    def _full(self) -> bool:
        return len(self.entries) >= self.every or self._size_bytes > MAX_HISTORY_BYTES

    def _take(self) -> None:
        self.entries.clear()
        self.values = None
        self._dirty.clear()
        # What no call uses any more may be a model that the program has let go of.
        self._handles = {
            key: handle
            for key, handle in self._handles.items()
            if key in self._used or key in self._read
        }
        self._used, self._read = {}, {}
        self.generation = next(_generations)
        self._size_bytes = self._spent_ns = 0
        self.dropped = ""
        started = time.perf_counter_ns()
        values = Values(self._handles.values())
        held = values.size_bytes
        self._cost_ns = time.perf_counter_ns() - started + held / COPY_BYTES_PER_NS
        if held > MAX_SNAPSHOT_BYTES:
            self.dropped = f"its {held >> 20} MiB of variables are too many to keep"
            values = Values(())
        self.values = values

    def _patch(self, entry: Entry) -> None:
        """Keep what something else has written, to be written again before the call."""
        for handle in self._dirty.values():
            dtype = variable_dtype(handle)
            value = read_variable(handle, dtype) if dtype else None
            if value is not None:
                entry.patches.append((handle, value))
        self._dirty.clear()


def size_bytes(tensor: Any) -> int:
    """Return the size of an eager tensor's elements, 0 for what has none."""
    try:
        return int(tensor._num_elements()) * int(tensor.dtype.size or 0)
    except Exception:
        return 0


def install(dirty: Callable[[Any], None]) -> Callable[[], None]:
    """Begin to take note of variables that the program writes outside of functions.

    Args:
        dirty: told of the handle.

    Returns:
        A function that takes the hooks off.
    """
    undo: list[Callable[[], None]] = []
    for owner in _with_subclasses(resource_variable_ops.BaseResourceVariable):
        for name in ("assign", "assign_add", "assign_sub"):
            if name in vars(owner):
                undo.append(_wrap(owner, name, lambda variable: variable.handle, dirty))
    undo.append(
        _wrap(
            resource_variable_ops, "shape_safe_assign_variable_handle", lambda handle: handle, dirty
        )
    )

    def uninstall() -> None:
        for each in undo:
            each()

    return uninstall


def _with_subclasses(owner: type) -> list[type]:
    return [owner, *(each for sub in owner.__subclasses__() for each in _with_subclasses(sub))]


def _wrap(
    owner: Any, name: str, handle_of: Callable[[Any], Any], dirty: Callable[[Any], None]
) -> Callable[[], None]:
    original = getattr(owner, name)

    @functools.wraps(original)
    def noted(target: Any, *args: Any, **kwargs: Any) -> Any:
        if context.executing_eagerly():
            with contextlib.suppress(Exception):
                dirty(handle_of(target))
        return original(target, *args, **kwargs)

    setattr(owner, name, noted)

    def unwrap() -> None:
        if getattr(owner, name) is noted:
            setattr(owner, name, original)

    return unwrap
