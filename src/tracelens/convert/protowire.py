"""Reads protocol buffers' wire format, message by message, without a schema.

https://protobuf.dev/programming-guides/encoding: a message is fields, each a tag (number and
wire type) and a value. Callers know the numbers that they want.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, overload

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Buffer = bytes | memoryview
Value = int | bytes
"""A varint or fixed-width field as an unsigned integer, anything else as its bytes."""

_DOUBLE = struct.Struct("<d")
_SIGN = 1 << 63
_WRAP = 1 << 64
_MAX_SHIFT = 63


class WireError(ValueError):
    """The bytes are not a message."""


@overload
def fields(data: bytes) -> Iterator[tuple[int, Value]]: ...
@overload
def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]: ...
def fields(data: Buffer) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message in order: number and value.

    Args:
        data: the message; of a view, fields of bytes are views too, which copy nothing.

    Raises:
        WireError: the message is torn, or uses what this format has not.

    Examples:
        >>> list(fields(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69])))
        [(1, 150), (2, b'hi')]
    """
    at, end = 0, len(data)
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = varint(data, at - 1)
        kind = tag & 7
        if kind == VARINT:
            if at < end and (byte := data[at]) < 0x80:
                at += 1
                yield tag >> 3, byte
            else:
                value, at = varint(data, at)
                yield tag >> 3, value
            continue
        if kind == BYTES:
            if at < end and (size := data[at]) < 0x80:
                at += 1
            else:
                size, at = varint(data, at)
        elif kind == FIXED64:
            size = 8
        elif kind == FIXED32:
            size = 4
        else:
            raise WireError(f"wire type {kind} at byte {at - 1}")
        after = at + size
        if after > end:
            raise WireError(f"a field of {size} bytes at byte {at} of {end}")
        raw = data[at:after]
        yield tag >> 3, raw if kind == BYTES else int.from_bytes(raw, "little")
        at = after


def varints(value: Value) -> list[int]:
    """Return the numbers of a repeated integer field's occurrence, packed or not."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = varint(value, at)
        found.append(number)
    return found


def signed(value: int) -> int:
    """Return a varint as the int32 or int64 it stands for.

    Examples:
        >>> signed(2**64 - 1), signed(7)
        (-1, 7)
    """
    return value - _WRAP if value >= _SIGN else value


def double(value: int | Buffer) -> float:
    """Return a fixed64 field as the double it stands for."""
    number: float = _DOUBLE.unpack(integer(value).to_bytes(8, "little"))[0]
    return number


def integer(value: int | Buffer) -> int:
    """Return a field that must be a number.

    Raises:
        WireError: it holds bytes.
    """
    if isinstance(value, int):
        return value
    raise WireError("bytes where a number should be")


def message(value: int | Buffer) -> bytes:
    """Return a field that must be a message or bytes.

    Raises:
        WireError: it holds a number.
    """
    if isinstance(value, int):
        raise WireError("a number where a message should be")
    return bytes(value)


def view(value: int | memoryview) -> memoryview:
    """Return a field that must be a message or bytes, without a copy.

    Raises:
        WireError: it holds a number.
    """
    if isinstance(value, int):
        raise WireError("a number where a message should be")
    return value


def text(value: int | Buffer) -> str:
    """Return a string field; what is not UTF-8 is replaced."""
    return message(value).decode("utf-8", "replace")


def varint(data: Buffer, at: int) -> tuple[int, int]:
    """Return the number that begins at a byte, and the byte after it.

    Raises:
        WireError: it does not end, or is too long.
    """
    result = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & (_WRAP - 1), at
            shift += 7
            if shift > _MAX_SHIFT:
                raise WireError(f"a number of more than 10 bytes at byte {at}")
    except IndexError:
        raise WireError("the message ends within a number") from None
