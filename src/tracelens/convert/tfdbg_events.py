"""The events of a tfdbg v2 dump, read from their protocol buffers.

Field numbers are those of TensorFlow's ``debug_event.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from tracelens.convert.protowire import double, fields, integer, message, text, varints


class Mode(IntEnum):
    """What a dump keeps of each tensor (``TensorDebugMode``)."""

    UNSPECIFIED = 0
    NO_TENSOR = 1
    CURT_HEALTH = 2
    CONCISE_HEALTH = 3
    FULL_HEALTH = 4
    SHAPE = 5
    FULL_NUMERICS = 6
    FULL_TENSOR = 7
    REDUCE_INF_NAN_THREE_SLOTS = 8


class What(IntEnum):
    """The kinds of events, by their field number."""

    METADATA = 3
    SOURCE_FILE = 4
    STACK_FRAME = 6
    GRAPH_OP = 7
    GRAPH = 8
    EXECUTION = 9
    TRACE = 10
    DEVICE = 12


@dataclass(frozen=True, slots=True)
class Event:
    """One event: when, what, and its message."""

    wall_time: float
    what: What
    body: bytes


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the dump says of itself."""

    tensorflow_version: str
    file_version: str
    run_id: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A Python file, lines included."""

    path: str
    host: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """A stack frame; ``file`` counts source files in the order they were written."""

    frame_id: str
    file: int
    line: int
    function: str


@dataclass(frozen=True, slots=True)
class GraphOp:
    """An op of a graph, as it was made; ``frames`` from the outermost in."""

    op_type: str
    name: str
    graph_id: str
    device: str
    inputs: tuple[str, ...]
    n_outputs: int
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph; ``outer_id`` is the graph it was made in."""

    graph_id: str
    name: str
    outer_id: str


@dataclass(frozen=True, slots=True)
class Execution:
    """An eager op, or the call of a function, whose graph is ``graph_id``."""

    wall_time: float
    op_type: str
    graph_id: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    mode: int
    tensors: tuple[bytes, ...]
    frames: tuple[str, ...]
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """One output of a graph's op, as it ran."""

    wall_time: float
    graph_id: str
    op_name: str
    slot: int
    mode: int
    tensor: bytes
    device: str


def event(data: bytes) -> Event | None:
    """Read an event; ``None`` for a kind that is not known.

    Raises:
        WireError: the bytes are no event.
    """
    wall_time = 0.0
    found: tuple[What, bytes] | None = None
    for number, value in fields(data):
        if number == 1:
            wall_time = double(value)
        elif number in _KINDS and isinstance(value, bytes):
            found = What(number), value
    return Event(wall_time, *found) if found is not None else None


_KINDS = frozenset(int(what) for what in What)


def metadata(body: bytes) -> Metadata:
    """Read a ``DebugMetadata``."""
    strings = _strings(body)
    return Metadata(strings.get(1, ""), strings.get(2, ""), strings.get(3, ""))


def source_file(body: bytes) -> SourceFile:
    """Read a ``SourceFile``."""
    strings: dict[int, str] = {}
    lines = []
    for number, value in fields(body):
        if number == 3:
            lines.append(text(value))
        elif number in (1, 2):
            strings[number] = text(value)
    return SourceFile(strings.get(1, ""), strings.get(2, ""), tuple(lines))


def frame(body: bytes) -> Frame:
    """Read a ``StackFrameWithId``."""
    frame_id, file, line, function = "", 0, 0, ""
    for number, value in fields(body):
        if number == 1:
            frame_id = text(value)
        elif number == 2:
            for inner, part in fields(message(value)):
                if inner == 1:
                    file = integer(part)
                elif inner == 2:
                    line = integer(part)
                elif inner == 4:
                    function = text(part)
    return Frame(frame_id, file, line, function)


def graph_op(body: bytes) -> GraphOp:
    """Read a ``GraphOpCreation``."""
    strings: dict[int, str] = {}
    inputs: list[str] = []
    n_outputs = 0
    frames: tuple[str, ...] = ()
    for number, value in fields(body):
        if number == 6:
            inputs.append(text(value))
        elif number == 7:
            n_outputs = integer(value)
        elif number == 8:
            frames = _code_location(message(value))
        elif isinstance(value, bytes):
            strings[number] = text(value)
    return GraphOp(
        strings.get(1, ""),
        strings.get(2, ""),
        strings.get(4, ""),
        strings.get(5, ""),
        tuple(inputs),
        n_outputs,
        frames,
    )


def graph(body: bytes) -> Graph:
    """Read a ``DebuggedGraph``."""
    strings = _strings(body)
    return Graph(strings.get(1, ""), strings.get(2, ""), strings.get(6, ""))


def device(body: bytes) -> tuple[int, str]:
    """Read a ``DebuggedDevice``: id and name."""
    number, name = 0, ""
    for key, value in fields(body):
        if key == 1:
            name = text(value)
        elif key == 2:
            number = integer(value)
    return number, name


def execution(wall_time: float, body: bytes) -> Execution:
    """Read an ``Execution``."""
    op_type = graph_id = ""
    inputs: list[int] = []
    outputs: list[int] = []
    devices: list[int] = []
    tensors: list[bytes] = []
    frames: tuple[str, ...] = ()
    mode = 0
    for number, value in fields(body):
        if number == 1:
            op_type = text(value)
        elif number == 3:
            graph_id = text(value)
        elif number == 4:
            inputs += varints(value)
        elif number == 5:
            outputs += varints(value)
        elif number == 6:
            mode = integer(value)
        elif number == 7:
            tensors.append(message(value))
        elif number == 8:
            frames = _code_location(message(value))
        elif number == 9:
            devices += varints(value)
    return Execution(
        wall_time,
        op_type,
        graph_id,
        tuple(inputs),
        tuple(outputs),
        mode,
        tuple(tensors),
        frames,
        tuple(devices),
    )


def trace(wall_time: float, body: bytes) -> Trace:
    """Read a ``GraphExecutionTrace``."""
    graph_id = op_name = place = ""
    slot = mode = 0
    tensor = b""
    for number, value in fields(body):
        if isinstance(value, int):
            if number == 3:
                slot = value
            elif number == 4:
                mode = value
        elif number == 1:
            graph_id = value.decode("utf-8", "replace")
        elif number == 2:
            op_name = value.decode("utf-8", "replace")
        elif number == 5:
            tensor = value
        elif number == 6:
            place = value.decode("utf-8", "replace")
    return Trace(wall_time, graph_id, op_name, slot, mode, tensor, place)


def _strings(body: bytes) -> dict[int, str]:
    return {number: text(value) for number, value in fields(body) if isinstance(value, bytes)}


def _code_location(body: bytes) -> tuple[str, ...]:
    return tuple(text(value) for number, value in fields(body) if number == 2)
