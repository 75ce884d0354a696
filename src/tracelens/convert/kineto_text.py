"""Splits the text of a Chrome trace into pieces of whole events, without parsing it.

A piece is a JSON array of events. Where it ends is guessed from the bytes between two events; a
wrong guess leaves a piece that is no JSON, so ``events_of`` then finds the events one by one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from tracelens.convert.kineto_bytes import CutOffError

MAX_HEAD_BYTES = 64 << 20
"""Where the events begin at last: what has none by then is no such file."""

MAX_EVENT_BYTES = 16 << 20
"""An event that does not end within this is left out."""

MAX_REST_BYTES = 4 << 20
"""What is kept of what follows the events."""

_KEYS = b"ph|cat|name|pid|tid|ts|dur|id|args|s|bp"
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{\s*\"(?:" + _KEYS + rb")\"\s*:)")
_ARRAY = re.compile(rb'"traceEvents"\s*:\s*\[')
# A string may lack its end, and is possessive where Python has that: one of megabytes is gone
# through once, and nothing is kept to come back to.
_ONCE = b"+" if sys.version_info >= (3, 11) else b""
_TOKEN = re.compile(
    rb'"[^"\\]*%b(?:\\.[^"\\]*%b)*%b(?:"|\\?\Z)|[{}\]]' % (_ONCE, _ONCE, _ONCE), re.DOTALL
)
_WINDOW_BYTES = 1 << 16
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


class NoEventsError(Exception):
    """There is no array of events."""


class EventText:
    """The text of one file.

    Args:
        pieces: its bytes, in order.

    Attributes:
        head: what stands before the events, ``{...,"traceEvents":[`` without its end.
        rest: what stands after them.
        beginning: the first bytes of the file.
        cut: why the text ended early, empty if it did not.
        ended: whether the array of events has an end.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.head = b""
        self.rest = b""
        self.beginning = b""
        self.cut = ""
        self.ended = False
        self._buffer = b""

    def arrays(self) -> Iterator[bytes]:
        """Yield JSON arrays of whole events, in order, without the last event.

        Who finds that an array is no JSON calls ``put_back`` with what of it is no whole event.
        The last event and what follows it are in ``remaining`` afterwards.

        Raises:
            NoEventsError: there is no array of events.
        """
        self._find_array()
        while True:
            at = _last_boundary(self._buffer)
            if at is not None:
                end, start = at
                array = b"[" + self._buffer[:end] + b"]"
                self._buffer = self._buffer[start:]
                yield array
                if self.ended:
                    return
            elif len(self._buffer) > MAX_EVENT_BYTES:
                return
            more = self._next()
            if not more:
                return
            self._buffer += more

    @property
    def remaining(self) -> bytes:
        """What was read and not yielded."""
        return self._buffer

    def more(self) -> bool:
        """Read on into ``remaining``; tell whether there was anything."""
        piece = self._next()
        self._buffer += piece
        return bool(piece)

    def put_back(self, text: bytes) -> None:
        """Put text before what comes next, with the comma that stood between."""
        if text.strip(_SPACE):
            self._buffer = text + b"," + self._buffer

    def end(self, rest: bytes) -> None:
        """The array of events has ended; keep what follows it."""
        self.ended = True
        self.rest = rest
        while len(self.rest) < MAX_REST_BYTES and (piece := self._next()):
            self.rest += piece
        self._buffer = b""

    def take(self, size: int) -> None:
        """Drop the first bytes of ``remaining``."""
        self._buffer = self._buffer[size:]

    def _find_array(self) -> None:
        text = self._next()
        self.beginning = text[: 1 << 12]
        text = text.removeprefix(_BOM).lstrip(_SPACE)
        if text[:1] == b"[":
            self._buffer = text[1:]
            return
        seen = 0
        while True:
            found = _ARRAY.search(text, max(0, seen - 64))
            if found:
                self.head = text[: found.start()]
                self._buffer = text[found.end() :]
                return
            seen = len(text)
            more = self._next() if text[:1] == b"{" and seen < MAX_HEAD_BYTES else b""
            if not more:
                self.head = text
                raise NoEventsError
            text += more

    def _next(self) -> bytes:
        try:
            return next(self._pieces, b"")
        except CutOffError as error:
            self.cut = str(error)
            self._pieces = iter(())
            return b""


def events_of(text: bytes) -> tuple[list[bytes], int, bool]:
    """Find whole events one by one, strings and nesting respected.

    Args:
        text: events with commas between, perhaps with what follows the array.

    Returns:
        The events, where the first unfinished one starts, and whether the array ended there.
    """
    found: list[bytes] = []
    depth = start = end = 0
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark == b"{":
            if not depth:
                start = token.start()
            depth += 1
        elif mark == b"}":
            depth -= 1
            if depth < 0:
                return found, token.end(), True
            if not depth:
                end = token.end()
                found.append(text[start:end])
        elif mark == b"]" and not depth:
            return found, token.end(), True
    return found, end, False


def next_event(text: bytes) -> int | None:
    """Return where the event after a broken one seems to start; ``None`` if there is none."""
    found = _BETWEEN.search(text, 1)
    return found.end() if found else None


def _last_boundary(text: bytes) -> tuple[int, int] | None:
    """Return the end of the last but one event and the start of the last one."""
    size = _WINDOW_BYTES
    while True:
        begin = max(0, len(text) - size)
        found = list(_BETWEEN.finditer(text, begin))
        if found:
            return found[-1].start() + 1, found[-1].end()
        if not begin:
            return None
        size *= 8
