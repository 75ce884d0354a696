"""Decodes events of a Chrome trace from JSON, and mends what writers get wrong.

Known faults: ``N/A`` and ``NaN`` without quotes, control characters inside strings, numbers as
strings. What cannot be mended is counted and left out, one event at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw

from tracelens.convert._textfile import BAD_JSON
from tracelens.convert.kineto_text import (
    MAX_EVENT_BYTES,
    EventText,
    events_of,
    next_event,
)
from tracelens.convert.problems import Problems

NO_ARGS = Raw(b"{}")


class Event(msgspec.Struct, gc=False):
    """An event as it stands in the file; times in µs."""

    ph: str = ""
    cat: str | None = ""
    name: str | None = ""
    pid: int | str | float | None = None
    tid: int | str | float | None = None
    ts: float | None = None
    dur: float | None = None
    id: int | str | float | None = None
    args: Raw = NO_ARGS


class ExactEvent(msgspec.Struct, gc=False):
    """An event whose time has more digits than a float holds."""

    ph: str = ""
    cat: str | None = ""
    name: str | None = ""
    pid: int | str | float | None = None
    tid: int | str | float | None = None
    ts: Raw = Raw(b"null")
    dur: float | None = None
    id: int | str | float | None = None
    args: Raw = NO_ARGS


BROKEN = BAD_JSON
"""What decoding raises of text that is no JSON, no UTF-8, or nested too deep."""

Events = list[Event] | list[ExactEvent]

_LONG_TIME = re.compile(rb'"ts"\s*:\s*"?\d{13,}\.\d')
_BARE = re.compile(
    rb'"(?:[^"\\]|\\.)*"|\bN/A\b|-?\bnan\b|-?\binf(?:inity)?\b|\bNone\b|\bundefined\b',
    re.IGNORECASE | re.DOTALL,
)
_SPACES = bytes.maketrans(bytes(range(32)), b" " * 32)


class EventReader:
    """Reads the events of one file, some thousands at a time.

    Args:
        text: the file.
        problems: told what was mended or left out.
    """

    def __init__(self, text: EventText, problems: Problems) -> None:
        self._text = text
        self._problems = problems
        self._exact: bool | None = None
        self._decoders = _decoders(Event)

    def batches(self) -> Iterator[Events]:
        """Yield events in the file's order.

        Raises:
            NoEventsError: there is no array of events.
        """
        for array in self._text.arrays():
            yield self._decode(array)
        yield from self._last()

    def exactly(self) -> None:
        """From now on give times as text."""
        self._exact = True
        self._decoders = _decoders(ExactEvent)

    def _last(self) -> Iterator[Events]:
        """Yield the last events, found one by one: what follows them is not known."""
        text = self._text
        while not text.ended:
            events, at, ended = events_of(text.remaining)
            if events:
                yield self._each(events)
            if ended:
                text.end(text.remaining[at:])
                return
            text.take(at)
            if text.more():
                if len(text.remaining) > MAX_EVENT_BYTES:
                    self._skip()
                continue
            if text.remaining.strip(b" \t\r\n,"):
                self._problems.add("the last event is cut off")
            return

    def _decode(self, array: bytes) -> Events:
        """Decode a JSON array of events, or what can be of it."""
        if self._exact is None:
            self._exact = _LONG_TIME.search(array[: 1 << 16]) is not None
            if self._exact:
                self.exactly()
        strict, lenient, _ = self._decoders
        try:
            return strict.decode(array)  # type: ignore[no-any-return]
        except BROKEN:
            pass
        try:
            return lenient.decode(array)  # type: ignore[no-any-return]
        except BROKEN:
            pass
        mended, faults = mend(array)
        try:
            events: Events = lenient.decode(mended)
            self._problems.add("values that are no JSON were read as unknown", faults)
            return events
        except BROKEN:
            found, at, ended = events_of(array[1:-1])
        if ended:
            self._text.end(array[1 + at : -1])
        else:
            self._text.put_back(array[1 + at : -1].lstrip(b" \t\r\n,"))
            if len(self._text.remaining) > MAX_EVENT_BYTES + len(array):
                self._skip()
        return self._each(found)

    def _skip(self) -> None:
        """Leave out an event that does not end."""
        self._problems.add("an event does not end and is left out")
        at = next_event(self._text.remaining)
        self._text.take(len(self._text.remaining) if at is None else at)

    def _each(self, texts: list[bytes]) -> Events:
        """Decode events one by one."""
        if self._exact is None:
            self._exact = any(_LONG_TIME.search(text) for text in texts)
            if self._exact:
                self.exactly()
        kind: Any = ExactEvent if self._exact else Event
        found: list[Any] = []
        for text in texts:
            event = self._one(text, kind)
            if event is not None:
                found.append(event)
        return found

    def _one(self, text: bytes, kind: Any) -> Any:
        lenient = self._decoders[2]
        try:
            return lenient.decode(text)
        except BROKEN:
            mended, faults = mend(text)
        try:
            event = lenient.decode(mended)
        except BROKEN:
            try:
                event = _plain(json.loads(mended, strict=False), kind)
            except (ValueError, RecursionError):
                event = None
            if event is None:
                self._problems.add("events cannot be read and are left out")
                return None
        if faults:
            self._problems.add("values that are no JSON were read as unknown", faults)
        return event


def mend(text: bytes) -> tuple[bytes, int]:
    """Return JSON with what is none replaced.

    Bare words become ``null``, control characters spaces, bytes that are no UTF-8 question marks.

    Returns:
        The text, and how many bare words were replaced.
    """
    faults = 0

    def replaced(found: re.Match[bytes]) -> bytes:
        nonlocal faults
        if found[0][:1] == b'"':
            return found[0]
        faults += 1
        return b"null"

    text = text.translate(_SPACES)
    try:
        text.decode()
    except UnicodeDecodeError:
        text = text.decode("utf-8", "replace").replace("\ufffd", "?").encode()
    return _BARE.sub(replaced, text), faults


def decode_args(raws: list[Raw], decoder: Any, kind: Any, problems: Problems) -> list[Any]:
    """Decode the arguments of events of one kind.

    Args:
        raws: JSON objects.
        decoder: of a list of ``kind``.
        kind: a Struct whose fields all have defaults.
        problems: told of arguments that cannot be read.
    """
    try:
        found: list[Any] = decoder.decode(b"[" + b",".join(raws) + b"]")
        return found
    except BROKEN:
        pass
    found = []
    for raw in raws:
        try:
            found.append(msgspec.json.decode(raw, type=kind, strict=False))
        except BROKEN:
            found.append(_partly(bytes(raw), kind))
            if bytes(raw) != b"null":
                problems.add("arguments have a form that is not known")
    return found


def _partly(raw: bytes, kind: Any) -> Any:
    """Return the arguments that have the expected form."""
    made = kind()
    try:
        given = msgspec.json.decode(raw, type=dict[str, Raw])
    except BROKEN:
        return made
    for field in msgspec.structs.fields(kind):
        if field.encode_name in given:
            try:
                value = msgspec.json.decode(given[field.encode_name], type=field.type, strict=False)
            except BROKEN:
                continue
            setattr(made, field.name, value)
    return made


def _decoders(kind: Any) -> tuple[Any, Any, Any]:
    return (
        msgspec.json.Decoder(list[kind]),
        msgspec.json.Decoder(list[kind], strict=False),
        msgspec.json.Decoder(kind, strict=False),
    )


def _plain(given: Any, kind: Any) -> Any:
    """Return an event of fields of any type, ``None`` if it is no event."""
    if not isinstance(given, dict) or not isinstance(given.get("ph"), str):
        return None
    event = kind(ph=given["ph"])
    for name in ("cat", "name"):
        setattr(event, name, _word(given.get(name)))
    for name in ("pid", "tid", "id"):
        value = given.get(name)
        setattr(event, name, value if isinstance(value, int | str | float) else None)
    for name in ("ts", "dur"):
        value = given.get(name)
        number = float(value) if isinstance(value, int | float) else None
        if name == "ts" and kind is ExactEvent:
            event.ts = Raw(json.dumps(number).encode())
        else:
            setattr(event, name, number)
    event.args = Raw(json.dumps(given["args"]).encode()) if given.get("args") else NO_ARGS
    return event


def _word(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
