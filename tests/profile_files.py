"""Small files in the formats of other profilers, made here, and where real ones lie."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

PROFILES = Path(__file__).parents[2] / "shared" / "data" / "profiles"


def real(*parts: str) -> Path:
    """Return a real recording, or skip the test where the data of others is not there."""
    path = PROFILES.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the collected profiles")
    return path


# XPlane.


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def blob(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


class XPlane:
    """One plane of an XPlane profile."""

    def __init__(self, name: str) -> None:
        self._head = blob(2, name)
        self._lines = b""
        self._kinds: dict[tuple[str, str], int] = {}
        self._stats: dict[str, int] = {}
        self._own = b""

    def stat(self, name: str, value: int | str, *, ref: bool = False) -> bytes:
        key = self._stats.setdefault(name, len(self._stats) + 1)
        if ref:
            other = self._stats.setdefault(str(value), len(self._stats) + 1)
            return number(1, key) + number(7, other)
        if isinstance(value, str):
            return number(1, key) + blob(5, value)
        return number(1, key) + number(4, value)

    def fact(self, name: str, value: int | str) -> None:
        self._own += blob(6, self.stat(name, value))

    def line(
        self, line_id: int, name: str, events: Sequence[tuple[Any, ...]], time_ns: int = 0
    ) -> XPlane:
        """Add a line of ``(name or (name, display), start_ns, duration_ns, {stat: value})``."""
        data = number(1, line_id) + blob(2, name) + number(3, time_ns)
        for what, start_ns, duration_ns, stats in events:
            key = what if isinstance(what, tuple) else (what, "")
            kind = self._kinds.setdefault(key, len(self._kinds) + 1)
            event = number(1, kind) + number(2, start_ns * 1000) + number(3, duration_ns * 1000)
            for stat, value in stats.items():
                event += blob(4, self.stat(stat, value, ref=isinstance(value, str)))
            data += blob(4, event)
        self._lines += blob(3, data)
        return self

    def bytes(self) -> bytes:
        kinds = b"".join(
            blob(4, number(1, key) + blob(2, number(1, key) + blob(2, name) + blob(4, display)))
            for (name, display), key in self._kinds.items()
        )
        stats = b"".join(
            blob(5, number(1, key) + blob(2, number(1, key) + blob(2, name)))
            for name, key in self._stats.items()
        )
        return self._head + self._lines + kinds + stats + self._own


def xspace(*planes: XPlane, host: str = "") -> bytes:
    data = b"".join(blob(1, plane.bytes()) for plane in planes)
    return data + (blob(4, host) if host else b"")


def environment(start_unix_ns: int) -> XPlane:
    plane = XPlane("Task Environment")
    plane.fact("profile_start_time", start_unix_ns)
    return plane


# Nsight Systems.

PID = 4242
GLOBAL_PID = PID << 24
GLOBAL_TID = PID << 24 | PID


def nsys_export(path: Path, tables: dict[str, tuple[str, list[tuple[Any, ...]]]]) -> Path:
    """Write an export: table -> its columns, separated by spaces, and its rows."""
    with closing(sqlite3.connect(path)) as connection:
        for table, (columns, rows) in tables.items():
            names = columns.split()
            connection.execute(f"CREATE TABLE {table} ({', '.join(f'{n} ANY' for n in names)})")
            places = ", ".join("?" * len(names))
            connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        connection.commit()
    return path


# Memory snapshots.


def snapshot(
    actions: list[dict[str, Any]], blocks: list[dict[str, Any]], *, total_size: int = 1 << 20
) -> dict[str, Any]:
    """Return what ``torch.cuda.memory._snapshot()`` does, of one device."""
    segment = {
        "device": 0,
        "address": 0x7F0000000000,
        "total_size": total_size,
        "stream": 0,
        "segment_type": "small",
        "segment_pool_id": (0, 0),
        "allocated_size": sum(block["size"] for block in blocks),
        "active_size": sum(block["size"] for block in blocks),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }
    return {
        "segments": [segment],
        "device_traces": [actions],
        "allocator_settings": {"expandable_segments": False, "garbage_collection_threshold": 0.0},
        "external_annotations": [],
    }


def dump(value: Any, path: Path, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    with open(path, "wb") as file:
        pickle.dump(value, file, protocol=protocol)
    return path
