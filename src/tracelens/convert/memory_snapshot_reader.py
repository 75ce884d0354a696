"""Reads the pickles of ``torch.cuda.memory._dump_snapshot`` as plain data, without unpickling.

A pickle is a program for a stack machine. This machine has only the instructions that make
dicts, lists, tuples, numbers, texts and bytes: those that import, call or build anything else
do not exist here, and a pickle that has one is refused with its name.
The instructions: ``pickletools`` of Python's standard library, protocols 2 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

MAX_MEMO = 50_000_000
"""Values that can be kept for later use: more than a pickle of 2 GiB can need."""

_MARK = object()
_U2, _I4, _U4, _U8, _DOUBLE = (struct.Struct(form) for form in ("<H", "<i", "<I", "<Q", ">d"))
_REFUSED = {
    0x63: "GLOBAL", 0x93: "STACK_GLOBAL", 0x52: "REDUCE", 0x62: "BUILD", 0x81: "NEWOBJ",
    0x92: "NEWOBJ_EX", 0x69: "INST", 0x6F: "OBJ", 0x50: "PERSID", 0x51: "BINPERSID",
    0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip
"""Instructions that import or call something, or read from outside."""


class PickleRefused(ValueError):
    """The bytes are no pickle of plain data."""


def read(data: bytes) -> Any:
    """Return the value that a pickle of plain data stands for.

    Args:
        data: the pickle.

    Raises:
        PickleRefused: it is torn, or wants more than containers, numbers, texts and bytes.

    Examples:
        >>> read(bytes.fromhex("80027d71005801000000617101") + bytes.fromhex("4b05732e"))
        {'a': 5}
    """
    if data[:1] != b"\x80":
        raise PickleRefused("no pickle of protocol 2 or later")
    machine = _Machine(data)
    try:
        return machine.run()
    except (IndexError, struct.error):
        raise PickleRefused(f"cut off or damaged at byte {min(machine.at, len(data))}") from None
    except (TypeError, KeyError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(error, PickleRefused):
            raise
        raise PickleRefused(f"damaged at byte {machine.at}: {error}") from None


class _Machine:
    """The stack machine.

    Args:
        data: the program.

    Attributes:
        at: the byte after the instruction that runs.
    """

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._table = self._instructions()

    def run(self) -> Any:
        """Run it to its end and return the value on top of the stack."""
        data, table, stack = self._data, self._table, self._stack
        while True:
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                value = stack.pop()
                if stack or value is _MARK:
                    raise PickleRefused("it ends with values left over")
                return value
            step = table[code]
            if step is None:
                name = _REFUSED.get(code)
                if name is None:
                    raise PickleRefused(f"unknown instruction {code:#x} at byte {self.at - 1}")
                wanted = self._named() if name in ("GLOBAL", "STACK_GLOBAL", "INST") else ""
                raise PickleRefused(
                    f"it wants to run code ({name}{wanted}) at byte {self.at - 1}: only plain data "
                    "is read"
                )
            step()

    def _instructions(self) -> list[Callable[[], None] | None]:
        push, memo = self._stack.append, self._memo
        stack = self._stack
        table: list[Callable[[], None] | None] = [None] * 256

        def memoize() -> None:
            memo[len(memo)] = stack[-1]
            if len(memo) > MAX_MEMO:
                raise PickleRefused("it keeps too many values")

        def append() -> None:
            value = stack.pop()
            _list(stack[-1]).append(value)

        def appends() -> None:
            values = self._to_mark()
            _list(stack[-1]).extend(values)

        def setitem() -> None:
            value, key = stack.pop(), stack.pop()
            _dict(stack[-1])[key] = value

        def setitems() -> None:
            values = self._to_mark()
            _dict(stack[-1]).update(zip(values[::2], values[1::2], strict=True))

        def made_dict() -> None:
            values = self._to_mark()
            push(dict(zip(values[::2], values[1::2], strict=True)))

        def pop() -> None:
            stack.pop()

        def made_tuple(size: int) -> Callable[[], None]:
            def make() -> None:
                values = tuple(self._top(size))
                push(values)

            return make

        table[0x80] = lambda: self._skip(1)  # PROTO
        table[0x95] = lambda: self._skip(8)  # FRAME
        table[0x7D] = lambda: push({})  # EMPTY_DICT
        table[0x5D] = lambda: push([])  # EMPTY_LIST
        table[0x29] = lambda: push(())  # EMPTY_TUPLE
        table[0x28] = lambda: push(_MARK)  # MARK
        table[0x4E] = lambda: push(None)  # NONE
        table[0x88] = lambda: push(True)  # NEWTRUE
        table[0x89] = lambda: push(False)  # NEWFALSE
        table[0x4B] = lambda: push(self._bytes(1)[0])  # BININT1
        table[0x4D] = lambda: push(_U2.unpack(self._bytes(2))[0])  # BININT2
        table[0x4A] = lambda: push(_I4.unpack(self._bytes(4))[0])  # BININT
        table[0x8A] = lambda: push(_integer(self._sized(self._bytes(1)[0])))  # LONG1
        table[0x8B] = lambda: push(_integer(self._sized(self._u4())))  # LONG4
        table[0x47] = lambda: push(_DOUBLE.unpack(self._bytes(8))[0])  # BINFLOAT
        table[0x8C] = lambda: push(_text(self._sized(self._bytes(1)[0])))  # SHORT_BINUNICODE
        table[0x58] = lambda: push(_text(self._sized(self._u4())))  # BINUNICODE
        table[0x8D] = lambda: push(_text(self._sized(self._u8())))  # BINUNICODE8
        table[0x43] = lambda: push(self._sized(self._bytes(1)[0]))  # SHORT_BINBYTES
        table[0x42] = lambda: push(self._sized(self._u4()))  # BINBYTES
        table[0x8E] = lambda: push(self._sized(self._u8()))  # BINBYTES8
        table[0x94] = memoize  # MEMOIZE
        table[0x71] = lambda: self._put(self._bytes(1)[0])  # BINPUT
        table[0x72] = lambda: self._put(self._u4())  # LONG_BINPUT
        table[0x68] = lambda: push(memo[self._bytes(1)[0]])  # BINGET
        table[0x6A] = lambda: push(memo[self._u4()])  # LONG_BINGET
        table[0x61] = append  # APPEND
        table[0x65] = appends  # APPENDS
        table[0x73] = setitem  # SETITEM
        table[0x75] = setitems  # SETITEMS
        table[0x64] = made_dict  # DICT
        table[0x6C] = lambda: push(self._to_mark())  # LIST
        table[0x74] = lambda: push(tuple(self._to_mark()))  # TUPLE
        for code, size in ((0x85, 1), (0x86, 2), (0x87, 3)):  # TUPLE1, TUPLE2, TUPLE3
            table[code] = made_tuple(size)
        table[0x30] = pop  # POP
        table[0x31] = self._drop_to_mark  # POP_MARK
        table[0x32] = lambda: push(stack[-1])  # DUP
        return table

    def _skip(self, size: int) -> None:
        self.at += size

    def _bytes(self, size: int) -> bytes:
        begin, self.at = self.at, self.at + size
        return self._data[begin : self.at]

    def _u4(self) -> int:
        return int(_U4.unpack(self._bytes(4))[0])

    def _u8(self) -> int:
        return int(_U8.unpack(self._bytes(8))[0])

    def _sized(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise IndexError
        return self._bytes(size)

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _to_mark(self) -> list[Any]:
        stack = self._stack
        place = len(stack) - 1
        while stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise PickleRefused(f"damaged at byte {self.at}: there is no mark")
        values = stack[place + 1 :]
        del stack[place:]
        return values

    def _drop_to_mark(self) -> None:
        self._to_mark()

    def _top(self, size: int) -> list[Any]:
        if len(self._stack) < size:
            raise IndexError
        values = self._stack[-size:]
        del self._stack[-size:]
        return values

    def _named(self) -> str:
        """Return what is to be imported, for the message."""
        strings = [each for each in self._stack[-2:] if isinstance(each, str)]
        if self._data[self.at - 1] == 0x93:
            return f" {'.'.join(strings)}"
        lines = self._data[self.at : self.at + 200].split(b"\n")[:2]
        return f" {'.'.join(line.decode('ascii', 'replace') for line in lines)}"


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise PickleRefused("it appends to what is no list")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise PickleRefused("it sets an item of what is no dict")
    return value


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
