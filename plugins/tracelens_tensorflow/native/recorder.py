"""The compiled recorder of probed ops, as Python drives it."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from tracelens import stats
from tracelens.storage.format import HEADER_HEAD_OFFSET, HEADER_SEALED_OFFSET
from tracelens_tensorflow.native import build

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter

_MAX_HITS = 4096


class Kind(IntEnum):
    """How a probe treats an op; mirrors ``OpKind`` in ``graphs.h``."""

    PLAIN = 0
    VIEW = 1
    CONSTANT = 2
    CALL = 3
    WRITE = 4
    READ = 5
    ARGUMENT = 6


class Level(IntEnum):
    """What probes do."""

    OFF = 0
    CHECKED = 1
    MEASURED = 2


class Hit(NamedTuple):
    """A probed op with a bad output.

    Attributes:
        graph: number of its graph's table.
        op: its place there.
        op_id: which run of it.
        step: the step.
        slots: a bit for each bad output; outputs past the 15th share one.
    """

    graph: int
    op: int
    op_id: int
    step: int
    slots: int


class NativeRecorder:
    """Writes the records of probed ops into a shard's ring, from C++.

    Args:
        writer: the shard; its counters are shared with every native engine of the process.

    Raises:
        BuildError: the ops cannot be compiled here.
    """

    def __init__(self, writer: ShardWriter) -> None:
        self.ops, self._library = build.load()
        self._writer = writer
        library = self._library
        for name in ("reserve", "reserve_op_id", "hits", "ops", "dropped", "graph", "find",
                     "take_hits"):  # fmt: skip
            getattr(library, f"tracelens_{name}").restype = ctypes.c_int64
        # Called from threads of TensorFlow's: it takes the GIL.
        self._intern_type = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.c_char_p)
        self._intern = self._intern_type(self._interned)
        self._hits = (ctypes.c_int64 * (5 * _MAX_HITS))()

    def open(self) -> None:
        """Begin to write; what was known of values and layouts is forgotten."""
        writer, u64 = self._writer, ctypes.c_uint64
        header = writer.header_address
        self._library.tracelens_open(
            u64(writer.record_address), u64(writer.capacity), u64(header + HEADER_HEAD_OFFSET),
            u64(header + HEADER_SEALED_OFFSET), u64(writer.op_id_address),
            int(writer.mode == "stream"), int(writer.on_full == "block"),
            ctypes.c_int64(writer.epoch_monotonic_ns), self._intern,
        )  # fmt: skip
        writer.use_native(self._library.tracelens_reserve, self._library.tracelens_reserve_op_id)

    def close(self) -> None:
        """Write nothing any more; probes that run later cost a look at a flag."""
        self._library.tracelens_close()

    def set_step(self, step: int, level: Level) -> None:
        """Set the step of the graph runs to come, and what their probes do."""
        self._library.tracelens_set_step(ctypes.c_int64(step), int(level))

    @property
    def hits(self) -> int:
        """Ops with a bad output since the library was loaded."""
        return int(self._library.tracelens_hits())

    @property
    def written(self) -> int:
        """Ops recorded since the library was loaded."""
        return int(self._library.tracelens_ops())

    @property
    def dropped(self) -> int:
        """Records for which a stream's ring had no room."""
        return int(self._library.tracelens_dropped())

    def take_hits(self) -> list[Hit]:
        """Return the hits since the last call, oldest first (the first 4096)."""
        n = self._library.tracelens_take_hits(self._hits, ctypes.c_int64(_MAX_HITS))
        return [Hit(*self._hits[5 * i : 5 * i + 5]) for i in range(n)]

    def find(self, address: int, size_bytes: int) -> int:
        """Return the id of the value that lies in memory, -1 if it is not known."""
        u64 = ctypes.c_uint64
        return int(self._library.tracelens_find(u64(address), u64(address + size_bytes)))

    def put(self, address: int, size_bytes: int, value_id: int) -> None:
        """Tell which value lies in memory (-1: one that nothing recorded wrote)."""
        u64 = ctypes.c_uint64
        self._library.tracelens_put(
            u64(address), u64(address + size_bytes), ctypes.c_int64(value_id)
        )

    def find_variables(self, keys: Sequence[int]) -> list[int]:
        """Return the ids of the values that variables hold, -1 where nothing is known.

        Args:
            keys: from `keys_of`.
        """
        n = len(keys)
        ids = (ctypes.c_int64 * n)()
        self._library.tracelens_find_variables((ctypes.c_int64 * n)(*keys), ctypes.c_int64(n), ids)
        return list(ids)

    def put_variables(self, keys: Sequence[int], ids: Sequence[int]) -> None:
        """Tell which values variables hold."""
        n, array = len(keys), ctypes.c_int64 * len(keys)
        self._library.tracelens_put_variables(array(*keys), ctypes.c_int64(n), array(*ids))

    def keys_of(self, handles: Sequence[Any]) -> list[int]:
        """Return the keys by which variables are known here, by their eager handles."""
        if not handles:
            return []
        return [int(key) for key in self.ops.trace_lens_keys(inputs=list(handles)).numpy()]

    def add_graph(self, n_ops: int) -> int:
        """Return the number of a new table of a graph's ops."""
        return int(self._library.tracelens_graph(ctypes.c_int64(n_ops)))

    def describe(
        self, graph: int, index: int, *, site: int, phase: int, kind: Kind, flags: int,
        forward: tuple[int, int], n_out: int, inputs: Sequence[int], in_layout: list[Any],
        out_layout: list[Any],
    ) -> None:  # fmt: skip
        """Tell all about an op of a graph.

        Args:
            graph: its table.
            index: its place there.
            site: interned site.
            phase: ``events.Phase``.
            kind: how a probe treats it.
            flags: ``events.OpFlag`` bits that always hold.
            forward: table and place of its forward op, ``(-1, -1)`` if it has none.
            n_out: how many outputs it has.
            inputs: value codes, see ``graphs.h``.
            in_layout: ``[dtype, sizes, device]`` of each input as far as the graph tells.
            out_layout: likewise of the outputs, for an op whose outputs no probe sees.
        """
        i64 = ctypes.c_int64
        codes = (ctypes.c_int64 * len(inputs))(*inputs)
        self._library.tracelens_graph_op(
            i64(graph), i64(index), site, phase, int(kind), flags, *forward, n_out, codes,
            i64(len(inputs)), _json(in_layout), _json(out_layout),
        )  # fmt: skip

    def set_constant(self, graph: int, index: int, found: stats.Stats) -> None:
        """Tell the statistics of a constant."""
        finite = found.numel - found.nonfinite
        counts = (ctypes.c_int64 * 6)(
            found.numel, found.nan, found.posinf, found.neginf, found.zero or 0, finite
        )
        numbers = (ctypes.c_double * 5)(
            found.vmin or 0, found.vmax or 0, found.mean or 0, found.std or 0, found.l2 or 0
        )
        self._library.tracelens_graph_constant(
            ctypes.c_int64(graph), ctypes.c_int64(index), counts, numbers
        )

    def _interned(self, kind: bytes, text: bytes) -> int:
        try:
            return int(self._writer.intern(kind.decode(), json.loads(text)))
        except Exception:
            return 0


def _json(value: list[Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
