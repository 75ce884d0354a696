"""Export to Perfetto's own format (a protobuf ``Trace``), a third of the size of Chrome JSON.

The same timeline as ``tracelens.convert.perfetto`` writes. Names are written once and then told by
number (Perfetto's interned data). The messages come from the official ``perfetto`` package.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

from tracelens.convert._output import new_file
from tracelens.convert._timeline import Slice, write
from tracelens.errors import TraceLensError

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

_SEQUENCE = 1
_REALTIME, _BOOTTIME = 1, 6
"""Perfetto's numbers of clocks: Unix time, and what packets' times are unless they say."""
_INT64 = range(-(1 << 63), 1 << 63)


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
) -> int:
    """Write the trace in Perfetto's protobuf format.

    Args:
        reader: an open trace.
        out_path: the file to write.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        force: replace an existing file.

    Returns:
        How many ops and kernels were written.

    Raises:
        ConfigError: ``out_path`` exists.
        TraceLensError: it cannot be written, or the ``perfetto`` package is not installed.
    """
    try:
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
    except ImportError:
        raise TraceLensError(
            "this format needs the perfetto package: pip install 'tracelens-toolkit[profile]'"
        ) from None
    with new_file(out_path, force=force) as temporary, open(temporary, "wb") as file:
        return write(reader, _Writer(StreamingTraceProtoBuilder(file)), first_step, last_step)


class _Writer:
    """Writes packets of one sequence.

    Args:
        builder: of the ``perfetto`` package.
    """

    def __init__(self, builder: Any) -> None:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket, TrackEvent

        self._builder = builder
        self._packet = TracePacket
        self._begin, self._end = TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END
        self._instant, self._count = TrackEvent.TYPE_INSTANT, TrackEvent.TYPE_COUNTER
        self._uuids: dict[tuple[Any, ...], int] = {}
        self._names: dict[tuple[str, str], int] = {}
        self._started = False

    def begin(self, base_unix_ns: int) -> None:
        """Say which Unix time the trace's time 0 is."""
        packet = self._new()
        for clock, value in ((_BOOTTIME, 0), (_REALTIME, max(0, base_unix_ns))):
            packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=value)
        self._write(packet)

    def process(self, pid: int, name: str, order: int) -> None:
        """Name a process."""
        packet = self._new()
        track = packet.track_descriptor
        track.uuid = self._uuid("process", pid)
        track.process.pid = pid
        track.process.process_name = name
        track.sibling_order_rank = order
        track.child_ordering = track.EXPLICIT
        self._write(packet)

    def track(self, pid: int, tid: int, name: str, order: int) -> None:
        """Name a track."""
        packet = self._new()
        track = packet.track_descriptor
        track.uuid = self._uuid("track", pid, tid)
        track.parent_uuid = self._uuid("process", pid)
        track.name = name
        track.sibling_order_rank = order
        self._write(packet)

    def slice(self, pid: int, tid: int, what: Slice) -> None:
        """Write a slice or an instant."""
        uuid = self._uuid("track", pid, tid)
        packet = self._new(what.start_ns)
        event = packet.track_event
        event.track_uuid = uuid
        event.type = self._instant if what.duration_ns is None else self._begin
        event.name_iid = self._interned(packet, "event_names", what.name)
        event.category_iids.append(self._interned(packet, "event_categories", what.category))
        for name, value in what.args.items():
            self._annotate(packet, event.debug_annotations.add(), name, value)
        event.flow_ids.extend(what.leaves)
        event.terminating_flow_ids.extend(what.enters)
        self._write(packet)
        if what.duration_ns is not None:
            packet = self._new(what.start_ns + what.duration_ns)
            packet.track_event.track_uuid = uuid
            packet.track_event.type = self._end
            self._write(packet)

    def counter(self, pid: int, name: str, unit: str, t_ns: int, value: float) -> None:
        """Write a counter's value."""
        key = "counter", pid, name
        known = key in self._uuids
        uuid = self._uuid(*key)
        if not known:
            packet = self._new()
            track = packet.track_descriptor
            track.uuid = uuid
            track.parent_uuid = self._uuid("process", pid)
            track.name = name
            track.counter.unit = (
                track.counter.UNIT_SIZE_BYTES if unit == "bytes" else track.counter.UNIT_UNSPECIFIED
            )
            self._write(packet)
        packet = self._new(t_ns)
        event = packet.track_event
        event.track_uuid = uuid
        event.type = self._count
        if isinstance(value, int):
            event.counter_value = value
        else:
            event.double_counter_value = value if math.isfinite(value) else 0.0
        self._write(packet)

    def _annotate(self, packet: Any, annotation: Any, name: str, value: Any) -> None:
        annotation.name_iid = self._interned(packet, "debug_annotation_names", name)
        if isinstance(value, bool):
            annotation.bool_value = value
        elif isinstance(value, int) and value in _INT64:
            annotation.int_value = value
        elif isinstance(value, float):
            annotation.double_value = value
        elif isinstance(value, str):
            annotation.string_value = value.encode("utf-8", "replace").decode()
        else:
            annotation.string_value = json.dumps(value, default=str)

    def _interned(self, packet: Any, table: str, text: str) -> int:
        """Return a text's number, which the packet that has it first explains."""
        number = self._names.get((table, text))
        if number is None:
            number = self._names[table, text] = len(self._names) + 1
            entry = getattr(packet.interned_data, table).add()
            entry.iid = number
            entry.name = text.encode("utf-8", "replace").decode()
        return number

    def _uuid(self, *key: Any) -> int:
        return self._uuids.setdefault(key, len(self._uuids) + 1)

    def _new(self, time_ns: int | None = None) -> Any:
        packet = self._packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        if time_ns is not None:
            packet.timestamp = max(0, time_ns)
        if self._started:
            packet.sequence_flags = packet.SEQ_NEEDS_INCREMENTAL_STATE
        else:
            packet.sequence_flags = packet.SEQ_INCREMENTAL_STATE_CLEARED
            self._started = True
        return packet

    def _write(self, packet: Any) -> None:
        self._builder.write_packet(packet)
