"""Writing one process's part of a trace; nothing here imports pyarrow or waits for a disk."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tracelens.storage.format import RECORD_BYTES, RECORD_STRUCT, RING_HEADER_BYTES
from tracelens.storage.jsonlines import LineWriter, read_lines
from tracelens.storage.manifest import LIVE_DIR, ShardState, write_shard
from tracelens.storage.ring import RING_STATE, Records, RingWriter, highest_position
from tracelens.storage.rundir import monotonic_epoch_ns, open_run
from tracelens.storage.sidecar import Sidecar
from tracelens.storage.strings import StringWriter
from tracelens.storage.tensors import TensorStore

STREAM_RING_BYTES = 64 << 20
FLIGHT_RING_BYTES = 32 << 20

_NO_LIMIT = 1 << 62
_BLOCK_S = 0.0005
_BLOCK_TIMEOUT_S = 60.0
_FLOAT32_MAX = 3.4028234663852886e38
_open_writers: weakref.WeakSet[ShardWriter] = weakref.WeakSet()


class ShardWriter:
    """Writes the records, events and tensors of one process.

    Every method may be called from any thread. After a fork the child's copy is inert: it
    takes everything and writes nothing, and its ring is private memory.

    Attributes:
        shard: name of the shard.
        mode: ``flight`` (the ring overwrites its oldest records) or ``stream`` (all are sealed).
        on_full: ``drop`` or ``block``: what a full ring does in stream mode.
        capacity: records that the ring holds.
        epoch_monotonic_ns: ``CLOCK_MONOTONIC`` at time 0 of the trace.
        reserve: returns the next ring position.
        reserve_op_id: returns the next op id.
        write: ``write(position, *fields)`` packs one record, ``seq`` last.
        disk_full: the last attempt to write a line or value found no room.
        lost_lines: events and interned values that could not be written.
    """

    reserve: Callable[[], int]
    reserve_op_id: Callable[[], int]
    write: Callable[..., None]

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        rank: int = 0,
        mode: str = "flight",
        ring_bytes: int | None = None,
        framework: str = "torch",
        on_full: str = "drop",
        world_size: int | None = None,
        host: str | None = None,
        sealed_by: str = "helper",
    ) -> None:
        """Create the shard's files, and start the process that seals them.

        Args:
            run_dir: the trace; made if missing, joined if other ranks write to it.
            rank: rank of this process.
            mode: ``flight`` or ``stream``.
            ring_bytes: upper bound on the ring; 64 MiB in stream mode, 32 MiB in flight mode.
            framework: framework recorded.
            on_full: ``drop`` or ``block``.
            world_size: ranks of the run; ``WORLD_SIZE`` of the environment, or 1.
            host: where what is recorded ran, if not here.
            sealed_by: ``helper`` (a process of its own), ``close`` (this process, when the shard
                is closed) or ``nobody`` (what is not copied elsewhere goes with the files).

        Raises:
            SessionError: the path holds something else, or a trace of this rank.
            OSError: the directory cannot be written or the disk has no room for the ring.
        """
        if mode not in ("flight", "stream") or on_full not in ("drop", "block"):
            raise ValueError(f"unknown mode {mode!r} or on_full {on_full!r}")
        self.run_dir = Path(run_dir).absolute()
        self.mode, self.on_full = mode, on_full
        self._sealed_by = sealed_by
        attempt = _environment_int("TORCHELASTIC_RESTART_COUNT", 0)
        size = world_size or _environment_int("WORLD_SIZE", 1)
        self.manifest, self.shard = open_run(self.run_dir, rank, attempt, size)
        self.epoch_monotonic_ns = monotonic_epoch_ns(self.manifest.epoch_unix_ns)
        self._lock = threading.Lock()
        self._inert = self._closed = False
        self.disk_full = False
        self.lost_lines = 0
        self._dropped = 0
        self._n_spools = 0
        self._next_rows: dict[str, int] = {}
        self._tensors: TensorStore | None = None
        self._kept = np.empty(0, dtype=np.int64)
        self._state = ShardState(
            self.shard, rank, attempt, host or socket.gethostname(), os.getpid(), framework, mode
        )
        self._open_files(
            ring_bytes or (STREAM_RING_BYTES if mode == "stream" else FLIGHT_RING_BYTES)
        )
        self._positions = itertools.count()
        self._op_ids = itertools.count()
        self._next_op_id = ctypes.c_int64()
        self.reserve = self._positions.__next__
        self.reserve_op_id = self._op_ids.__next__
        self.write, self._set_limit = self._make_write()
        _open_writers.add(self)

    def add_framework(self, framework: str) -> None:
        """A further framework is recorded: say so in the shard's state.

        Args:
            framework: its import name.
        """
        known = [name for name in self._state.framework.split(", ") if name]
        if framework not in known and not self._inert:
            self._state.framework = ", ".join([*known, framework])
            self._ring.set_framework(self._state.framework)

    def _open_files(self, ring_bytes: int) -> None:
        live = self.run_dir / LIVE_DIR
        header = {
            "run_id": self.manifest.run_id,
            "epoch_unix_ns": self.manifest.epoch_unix_ns,
            "on_full": self.on_full,
            **{name: getattr(self._state, name) for name in RING_STATE},
        }
        made: list[Path] = []
        try:
            made.append(live / f"{self.shard}.ring")
            self._ring = RingWriter(made[-1], ring_bytes, header)
            made.append(live / f"{self.shard}.strings")
            self._strings = StringWriter(made[-1])
            made.append(live / f"{self.shard}.events")
            self._events = LineWriter(made[-1])
            self._state.heartbeat_ns = self.now_ns()
            write_shard(self.run_dir, self._state)
        except OSError:
            for path in made:
                path.unlink(missing_ok=True)
            raise
        self.capacity = self._ring.capacity
        self.record_address = self._ring.record_address
        self._sidecar: Sidecar | None = None
        if self._sealed_by == "helper":
            with contextlib.suppress(OSError):
                self._sidecar = Sidecar(self.run_dir, self.shard, mode=self.mode)

    @property
    def header_address(self) -> int:
        """Address of the ring's header, whose head hint is brought up to date."""
        if self.reserve == self._positions.__next__:
            self._ring.set_head_hint(_peek(self._positions))
        return self._ring.address

    @property
    def op_id_address(self) -> int:
        """Address of the next op id (an ``int64``), brought up to date: native engines count there.

        Engines of several frameworks share it, so that no two ops of a process have one id.
        """
        if self.reserve_op_id == self._op_ids.__next__:
            self._next_op_id.value = _peek(self._op_ids)
        return ctypes.addressof(self._next_op_id)

    def use_native(self, reserve: Callable[[], int], reserve_op_id: Callable[[], int]) -> None:
        """Take positions and op ids from a native engine from now on."""
        self.reserve, self.reserve_op_id = reserve, reserve_op_id

    def now_ns(self) -> int:
        """Return the time since the trace's epoch."""
        return time.monotonic_ns() - self.epoch_monotonic_ns

    def intern(self, kind: str, value: Any) -> int:
        """Return the id (>= 1) of a ``site``, ``layout`` or ``tensor`` value."""
        try:
            return self._strings.intern(kind, value)
        except OSError:
            self._lose_line()
            return self._strings.intern(kind, value)

    def strings(self, number: int) -> Any:
        """Return an interned value, ``None`` if there is none of that id."""
        entry = self._strings.values.get(number)
        return None if entry is None else entry[1]

    def interned(self, number: int) -> tuple[str, Any] | None:
        """Return kind and value of an interned id, ``None`` if there is none."""
        return self._strings.values.get(number)

    def events_end(self) -> int:
        """Return where the next event will be written: `events_from` reads on from there."""
        return self._events.size_bytes

    def events_from(self, place: int) -> list[dict[str, Any]]:
        """Return the events written since a place, as they were given."""
        return [line for line, _ in read_lines(self._events.path, place) if isinstance(line, dict)]

    def event(self, t: str, /, **fields: Any) -> bool:
        """Append one event; return whether it is on its way to the disk."""
        if self._inert or self._closed:
            return False
        try:
            with self._lock:
                self._events.append({"t": t, **fields})
        except OSError:
            self._lose_line()
            return False
        self.disk_full = False
        return True

    def committed(self, last: int | None = None) -> Records:
        """Return a copy of the committed records still in the ring, in position order.

        Args:
            last: only the newest so many positions.
        """
        head = highest_position(self._ring.records) + 1
        return self._ring.committed(max(0, head - (last or self.capacity)), head)

    def keep(self, first_step: int, last_step: int) -> int:
        """Make the ring's records of some steps permanent (flight mode); return how many.

        Stream mode keeps everything anyway.
        """
        if self.mode != "flight" or self._inert or self._closed:
            return 0
        if self._sealed_by == "nobody":
            return 0
        records = self.committed()
        return self.adopt(records[(records["step"] >= first_step) & (records["step"] <= last_step)])

    def adopt(self, records: Records) -> int:
        """Make records permanent (flight mode), each once; return how many were new.

        Args:
            records: this ring's, or another one's with this shard's ids of interned values.
        """
        with self._lock:
            records = records[~np.isin(records["seq"], self._kept)]
            if not len(records):
                return 0
            try:
                with open(self.run_dir / LIVE_DIR / f"{self.shard}.kept", "ab") as file:
                    end = file.tell()
                    try:
                        file.write(records.tobytes())
                        file.flush()
                    except OSError:
                        file.truncate(end)
                        raise
            except OSError:
                self._lose_line()
                return 0
            self._kept = np.concatenate([self._kept, records["seq"]])
        return len(records)

    def tensor(
        self,
        value_id: int,
        name: str,
        array_bytes: bytes | memoryview,
        dtype: str,
        shape: list[int] | tuple[int, ...],
        step: int,
        op_id: int,
    ) -> bool:
        """Store a tensor's values (row-major, little-endian); return whether there was room."""
        if self._inert or self._closed:
            return False
        try:
            with self._lock:
                self._tensors = self._tensors or TensorStore(self.run_dir, self.shard)
                place = self._tensors.put(array_bytes, dtype, tuple(shape))
        except OSError:
            self._lose_line()
            return False
        fields = {"value_id": value_id, "step": step, "op_id": op_id, "name": name, **place}
        return self.event("tensor", **fields)

    def spool(self, tables: Mapping[str, Mapping[str, Any]]) -> bool:
        """Hand whole columns over to the sealer; return whether there was room.

        Args:
            tables: table name to columns, as ``storage.columns`` says.
        """
        if self._inert or self._closed:
            return False
        from tracelens.storage.spool import write_spool

        try:
            with self._lock:
                write_spool(self.run_dir, self.shard, self._n_spools, tables)
                self._n_spools += 1
        except OSError:
            self._lose_line()
            return False
        return True

    def reserve_rows(self, table: str, n: int) -> int:
        """Return the first of ``n`` ids for rows of ``"spans"`` or ``"kernels"``."""
        with self._lock:
            first = self._next_rows.get(table, 0)
            self._next_rows[table] = first + n
        return first

    def count_dropped(self, n: int) -> None:
        """Tell of records that a native engine dropped without giving them a position."""
        self._dropped += n

    def close(self, state: str = "closed") -> None:
        """Seal everything and write the final manifests; idempotent."""
        if self._closed or self._inert:
            return
        self._set_limit(-1)
        self._closed = True
        _open_writers.discard(self)
        with contextlib.suppress(OSError):
            if self._tensors is not None:
                self._tensors.close()
        self._strings.close()
        self._events.close()
        if self._sealed_by == "nobody":
            return
        if self._sidecar is not None and self._sidecar.finish(state, self._dropped):
            return
        self._finish_here(state)

    def _finish_here(self, state: str) -> None:
        """Seal in this process: the sidecar could not be started, was killed, or failed."""
        from tracelens.errors import TraceError
        from tracelens.storage.sealer import Sealer

        try:
            sealer = Sealer(self.run_dir, self.shard)
            sealer.state.dropped += self._dropped
            sealer.finish(state)
        except (OSError, TraceError) as error:
            sys.stderr.write(
                f"tracelens: the trace {self.run_dir} could not be finished: {error}; "
                f"what was recorded is safe: run `tracelens repair` once there is room\n"
            )

    def _make_write(self) -> tuple[Callable[..., None], Callable[[int], None]]:
        """Return ``write`` and a setter of its limit, the first position there is no room for."""
        pack_into, buffer, mask = RECORD_STRUCT.pack_into, self._ring.buffer, self.capacity - 1
        limit = _NO_LIMIT if self.mode == "flight" else self.capacity

        def set_limit(value: int) -> None:
            nonlocal limit
            limit = value

        def write(position: int, *fields: float) -> None:
            nonlocal limit
            if position >= limit:
                limit = self._room(position)
                if position >= limit:
                    return
            offset = RING_HEADER_BYTES + (position & mask) * RECORD_BYTES
            try:
                pack_into(buffer, offset, *fields, position + 1)
            except (struct.error, OverflowError):
                pack_into(buffer, offset, *_clamped(fields), position + 1)

        return write, set_limit

    def _room(self, position: int) -> int:
        """Return the first position that there is no room for, having waited if asked to."""
        if self._inert:
            return _NO_LIMIT
        if self._closed:
            return -1
        limit = self._ring.sealed + self.capacity
        if position >= limit:
            # Readers and the sealer learn that these positions were given out.
            self._ring.set_head_hint(max(self._ring.head_hint, position + 1))
            deadline = time.monotonic() + _BLOCK_TIMEOUT_S
            while self.on_full == "block" and position >= limit:
                time.sleep(_BLOCK_S)
                limit = self._ring.sealed + self.capacity
                if time.monotonic() > deadline or not self._sealing():
                    break
        return limit

    def _sealing(self) -> bool:
        return self._sidecar is not None and self._sidecar.alive()

    def _lose_line(self) -> None:
        """Take note of a full disk once, where a reader will look for it."""
        self.lost_lines += 1
        if self.disk_full:
            return
        self.disk_full = True
        if self.mode == "flight":  # in stream mode the sealer writes the shard's state
            self._state.state = "disk_full"
            with contextlib.suppress(OSError):
                write_shard(self.run_dir, self._state)

    def _go_inert(self) -> None:
        """In a forked child: leave the parent's files and memory alone."""
        self._inert = True
        self._lock = threading.Lock()
        self._set_limit(_NO_LIMIT)
        self._ring.detach()
        self._strings.detach()
        self._events.close()
        if self._sidecar is not None:
            self._sidecar.abandon()


def _clamped(fields: tuple[float, ...]) -> list[float]:
    """Bring every field into its range: a float64's maximum does not fit a float32 field."""
    kinds = RECORD_STRUCT.format.lstrip("<")
    expanded: list[str] = []
    count = ""
    for char in kinds:
        if char.isdigit():
            count += char
        else:
            expanded += [char] * int(count or 1)
            count = ""
    bounds = {"B": (0, 255), "H": (0, 65535), "i": (-(1 << 31), (1 << 31) - 1)}
    result: list[float] = []
    for kind, value in zip(expanded, fields, strict=False):
        if kind == "f":
            small = value != value or abs(value) == float("inf")
            result.append(value if small else max(-_FLOAT32_MAX, min(_FLOAT32_MAX, value)))
        else:
            low, high = bounds.get(kind, (-(1 << 63), (1 << 63) - 1))
            result.append(max(low, min(high, int(value))))
    return result


def _peek(counter: itertools.count[int]) -> int:
    """Return what a counter will give next, without taking it."""
    return int(repr(counter)[len("count(") : -1])


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _after_fork_in_child() -> None:
    for writer in list(_open_writers):
        writer._go_inert()
    _open_writers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
