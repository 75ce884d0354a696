"""The lines of an XPlane profile and the events on them.

A line is held as its bytes; events are decoded as they are asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from tracelens.convert.protowire import (
    BYTES,
    FIXED64,
    VARINT,
    Buffer,
    WireError,
    fields,
    integer,
    message,
    signed,
    text,
    varint,
)

_FAR_NS = 1 << 62
_LONG_EVENTS = 1 << 16
_STATS = 0x22
_NUMBERS = frozenset({0x08, 0x10, 0x18})
"""Tags of an event's fields: its statistics; its kind, offset and duration."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a line.

    Attributes:
        kind: its kind's id in ``Plane.kinds``.
        offset_ps: when it began, picoseconds after the line's time.
        duration_ps: how long it took.
        stats: its own statistics, undecoded.
    """

    kind: int
    offset_ps: int
    duration_ps: int
    stats: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A thread of the host, or a stream of a device.

    Attributes:
        line_id: its number.
        name: its name.
        time_ns: what its events' offsets count from.
        events: its events, undecoded.
    """

    line_id: int
    name: str
    time_ns: int
    events: Sequence[bytes]

    def decoded(self) -> Iterator[Event]:
        """Yield its events.

        Raises:
            WireError: one is damaged.
        """
        for data in self.events:
            yield event(data)

    def nested(self) -> Iterator[Event]:
        """Yield its events in order of time, the outer before the inner.

        Of a long line only numbers are held.

        Raises:
            WireError: one is damaged.
        """
        if len(self.events) <= _LONG_EVENTS:
            yield from sorted(self.decoded(), key=_nesting)
            return
        keys = np.array([_nesting(each) for each in self.decoded()], dtype=np.int64)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        del keys
        for place in order:
            yield event(self.events[place])


class _Events(Sequence[bytes]):
    """A line's events, copied out of its bytes when they are wanted.

    Args:
        data: the line.
        bounds: where each event begins and ends in it.
    """

    def __init__(self, data: Buffer, bounds: array[int]) -> None:
        self._data, self._bounds = data, bounds

    def __len__(self) -> int:
        return len(self._bounds) // 2

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return bytes(self._data[self._bounds[2 * place] : self._bounds[2 * place + 1]])


def event(data: bytes) -> Event:
    """Read a serialized ``XEvent``.

    Raises:
        WireError: it is damaged.
    """
    numbers = [0, 0, 0, 0]
    stats = []
    at, end = 0, len(data)
    try:
        # A profile is mostly events: their own loop takes half the time of a general one.
        while at < end:
            tag = data[at]
            if tag == _STATS:
                size, at = data[at + 1], at + 2
                if size >= 0x80:
                    size, at = varint(data, at - 1)
                stats.append(data[at : at + size])
                at += size
            elif tag in _NUMBERS:
                value, at = data[at + 1], at + 2
                if value >= 0x80:
                    value, at = varint(data, at - 1)
                numbers[tag >> 3] = signed(value)
            else:
                return _any_event(data)
    except IndexError:
        raise WireError("an event is cut off") from None
    if at > end:
        raise WireError("an event is cut off")
    return Event(numbers[1], numbers[2], max(0, numbers[3]), tuple(stats))


def window(begin_ns: int, event: Event) -> tuple[int, int]:
    """Return when an event began and ended, ns; rounding both ways alike keeps neighbours apart.

    Args:
        begin_ns: what its line's offsets count from.
        event: the event.

    Raises:
        WireError: no clock shows such a time.
    """
    start_ns = begin_ns + event.offset_ps // 1000
    end_ns = begin_ns + (event.offset_ps + event.duration_ps) // 1000
    if not -_FAR_NS < start_ns <= end_ns < _FAR_NS:
        raise WireError("an event at an absurd time")
    return start_ns, end_ns


def _any_event(data: bytes) -> Event:
    """Read an event that has fields which this version does not know."""
    numbers = [0, 0, 0, 0]
    stats = []
    for number, value in fields(data):
        if number == 4:
            stats.append(message(value))
        elif number in (1, 2, 3):
            numbers[number] = signed(integer(value))
    return Event(numbers[1], numbers[2], max(0, numbers[3]), tuple(stats))


def line_of(data: memoryview) -> Line:
    """Read a serialized ``XLine``, its events left for later.

    Raises:
        WireError: it is damaged.
    """
    line_id = time_ns = 0
    name = shown = ""
    bounds = array("Q")
    at, end = 0, len(data)
    while at < end:
        if data[at] == _STATS:  # an event: the same number, of a line
            size, begin = varint(data, at + 1)
            at = begin + size
            bounds.extend((begin, at))
            continue
        size = _size(data, at)
        for number, value in fields(data[at : at + size]):
            if number == 1:
                line_id = signed(integer(value))
            elif number == 2:
                name = text(value)
            elif number == 3:
                time_ns = signed(integer(value))
            elif number == 11:
                shown = text(value)
        at += size
    if at > end:
        raise WireError("a line is cut off")
    return Line(line_id, name or shown, time_ns, _Events(data, bounds))


def _size(data: Buffer, at: int) -> int:
    """Return how many bytes the field that begins at a byte has."""
    tag, after = varint(data, at)
    kind = tag & 7
    if kind == VARINT:
        return varint(data, after)[1] - at
    if kind == BYTES:
        size, begin = varint(data, after)
        return begin + size - at
    return after - at + (8 if kind == FIXED64 else 4)


def _nesting(each: Event) -> tuple[int, int]:
    return each.offset_ps, -each.duration_ps
