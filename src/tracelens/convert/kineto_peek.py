"""A look at the beginning of a profile: its rank and about when it starts.

Of several files these are needed before the first is written: all ranks of a trace count their
time from one epoch, and a file that names its rank goes before one that takes what is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracelens.convert.kineto_bytes import CutOffError, Source
from tracelens.convert.kineto_clean import DAY_NS
from tracelens.convert.kineto_ranks import About, is_unix, rank_in_name
from tracelens.convert.kineto_text import EventText, NoEventsError
from tracelens.errors import TraceError

_TIME = re.compile(rb'"ts"\s*:\s*"?(\d{1,19})')
_LOOKED_AT_BYTES = 1 << 18
_END_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Peek:
    """What the beginning of a file tells.

    Attributes:
        rank: that it names, by itself or in its file's name; ``None`` for none.
        start_ns: when its first events began, in Unix time where it says so; ``None`` if it has
            none.
    """

    rank: int | None
    start_ns: int | None


def peek(source: Source) -> Peek:
    """Look at a file; of one that cannot be read nothing is known."""
    text = EventText(source.pieces())
    try:
        events = next(text.arrays(), b"") or text.remaining
    except (NoEventsError, TraceError, OSError):
        return Peek(rank_in_name(source.name), None)
    about = About.of(text.head, b"")
    start = _start(events[:_LOOKED_AT_BYTES])
    if start is not None and not about.base_ns and not is_unix(start):
        about = About.of(text.head, _end(source))
    rank = about.rank if about.rank is not None else rank_in_name(source.name)
    return Peek(rank, None if start is None else start + about.base_ns)


def _start(events: bytes) -> int | None:
    """Return the earliest time of events in ns, those a day off left out."""
    times = sorted(int(each) * 1000 for each in _TIME.findall(events))
    if not times:
        return None
    middle = times[len(times) // 2]
    return next(each for each in times if each > middle - DAY_NS and (each or not middle))


def _end(source: Source) -> bytes:
    """Return the end of a file, where older profiles say what their times count from."""
    end = b""
    try:
        for piece in source.pieces():
            end = (end + piece)[-_END_BYTES:]
    except (CutOffError, TraceError):
        pass
    return end
