"""The parts of an XPlane profile (``*.xplane.pb``): planes, their lines, the events on them.

Field numbers are those of XLA's ``xplane.proto``. A plane's lines and an event's statistics are
decoded when they are asked for, so that a reader holds one line's events at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tracelens.convert.protowire import (
    Buffer,
    WireError,
    double,
    fields,
    integer,
    message,
    signed,
    text,
    varint,
    view,
)
from tracelens.convert.xplane_lines import Event, Line, line_of, window

__all__ = ["Event", "Kind", "Line", "Plane", "Space", "Stat", "plane", "space", "window"]

ABSOLUTE_NS = 10**15
"""Times past this are Unix times (2001 and later), others are since the profile's start."""

ENVIRONMENT = "Task Environment"
HOST = "/host:CPU"
HOST_CUPTI = "/host:CUPTI"
DEVICE = "/device:"

_SIGNED, _REFERENCE = 0x20, 0x38
_SCALARS = frozenset({0x18, _SIGNED, _REFERENCE})
"""Tags of a statistic's value: a number, a signed one, the number of a text."""

Stat = int | float | str | bytes


@dataclass(frozen=True, slots=True)
class Kind:
    """What the events of one kind have in common.

    Attributes:
        name: their name.
        display: the name to be shown, if it is another.
        stats: what is true of all of them, undecoded.
    """

    name: str = ""
    display: str = ""
    stats: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Plane:
    """The host, a device, or facts of the profile.

    Attributes:
        name: ``/host:CPU``, ``/device:GPU:0`` ...
        kinds: its events' kinds.
        stat_names: the names of statistics, and the texts that some of them stand for.
        lines_data: its lines, undecoded.
    """

    name: str = ""
    kinds: dict[int, Kind] = field(default_factory=dict)
    stat_names: dict[int, str] = field(default_factory=dict)
    lines_data: list[memoryview] = field(default_factory=list)
    _stats: list[bytes] = field(default_factory=list)

    def lines(self) -> Iterator[Line]:
        """Yield its lines.

        Raises:
            WireError: one is damaged.
        """
        for data in self.lines_data:
            yield line_of(data)

    def stats(self, data: tuple[bytes, ...] | list[bytes] | None = None) -> dict[str, Stat]:
        """Return statistics by name: the plane's own, or those of an event or a kind."""
        found: dict[str, Stat] = {}
        for each in self._stats if data is None else data:
            name, value = self._stat(each)
            if value is not None:
                found[name] = value
        return found

    def _stat(self, data: bytes) -> tuple[str, Stat | None]:
        if len(data) > 3 and data[0] == 0x08 and data[1] < 0x80 and data[2] in _SCALARS:
            value, after = varint(data, 3)
            if after == len(data):
                name = self.stat_names.get(data[1], "")
                if data[2] == _REFERENCE:
                    return name, self.stat_names.get(value, "")
                return name, signed(value) if data[2] == _SIGNED else value
        return self._any_stat(data)

    def _any_stat(self, data: bytes) -> tuple[str, Stat | None]:
        name: str = ""
        value: Stat | None = None
        for number, part in fields(data):
            if number == 1:
                name = self.stat_names.get(signed(integer(part)), "")
            elif number == 2:
                value = double(part)
            elif number == 3:
                value = integer(part)
            elif number == 4:
                value = signed(integer(part))
            elif number == 5:
                value = text(part)
            elif number == 6:
                value = message(part)
            elif number == 7:
                value = self.stat_names.get(integer(part), "")
        return name, value


@dataclass(slots=True)
class Space:
    """A profile of one host.

    Attributes:
        planes: its planes.
        hosts: names of hosts.
        warnings: what the profiler said went wrong.
        torn: why the rest could not be read, empty if all was.
    """

    planes: list[Plane] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    torn: str = ""

    def start_unix_ns(self) -> int:
        """Return the Unix time at which relative times start; 0 where it is not told."""
        for plane in self.planes:
            if plane.name == ENVIRONMENT:
                start = plane.stats().get("profile_start_time", 0)
                return start if isinstance(start, int) else 0
        return 0


def space(data: Buffer, *, lenient: bool = False) -> Space:
    """Read a serialized ``XSpace``.

    Args:
        data: the file.
        lenient: keep the planes before damage, and say so in ``torn``.

    Raises:
        WireError: it is none, or damaged.
    """
    found = Space()
    try:
        for number, value in fields(memoryview(data)):
            if number == 1:
                found.planes.append(plane(view(value)))
            elif number in (2, 3):
                found.warnings.append(text(value))
            elif number == 4:
                found.hosts.append(text(value))
            elif number > 4:
                raise WireError(f"a field {number}, which an XSpace has not")
    except WireError as error:
        if not lenient or not any(each.lines_data for each in found.planes):
            raise
        found.torn = str(error)
    return found


def plane(data: memoryview) -> Plane:
    """Read a serialized ``XPlane``, its lines left for later.

    Raises:
        WireError: it is damaged.
    """
    found = Plane()
    for number, value in fields(data):
        if number == 2:
            found.name = text(value)
        elif number == 3:
            found.lines_data.append(view(value))
        elif number == 4:
            key, entry = _entry(message(value))
            found.kinds[key] = _kind(entry)
        elif number == 5:
            key, entry = _entry(message(value))
            found.stat_names[key] = next((text(v) for n, v in fields(entry) if n == 2), "")
        elif number == 6:
            found._stats.append(message(value))
    return found


def _entry(data: bytes) -> tuple[int, bytes]:
    """Return the key and value of a map's entry."""
    key, value = 0, b""
    for number, part in fields(data):
        if number == 1:
            key = signed(integer(part))
        elif number == 2:
            value = message(part)
    return key, value


def _kind(data: bytes) -> Kind:
    name = display = ""
    stats = []
    for number, value in fields(data):
        if number == 2:
            name = text(value)
        elif number == 4:
            display = text(value)
        elif number == 5:
            stats.append(message(value))
    return Kind(name, display, tuple(stats))
