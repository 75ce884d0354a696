"""Append-only JSON lines: one ``os.write`` a line, so that a killed process leaves whole lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 16 << 20
"""A longer line is damage, not data."""


def dumps(value: object) -> str:
    """Return strict one-line JSON; non-finite floats become ``"NaN"`` or ``"Infinity"``."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=str)
    except ValueError:
        return json.dumps(_strict(value), allow_nan=False, separators=(",", ":"), default=str)


def _strict(value: Any) -> Any:
    """Replace non-finite floats, which JSON does not have, by strings ``float()`` accepts."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


class LineWriter:
    """Appends JSON lines to one file that no other process writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the file.

        Raises:
            OSError: it exists already or cannot be created.
        """
        self.path = Path(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._fd = os.open(self.path, flags, 0o644)
        self.size_bytes = 0

    def append(self, value: object) -> None:
        """Write one line, whole or not at all; nothing once closed.

        Raises:
            OSError: the disk is full or the file is gone; the file ends with a whole line.
        """
        if self._fd < 0:
            return
        data = dumps(value).encode() + b"\n"
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            # A disk that fills up takes part of a line; a later line must not join it.
            os.ftruncate(self._fd, self.size_bytes)
            raise
        self.size_bytes += len(data)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_lines(
    path: str | os.PathLike[str], offset: int = 0, max_bytes: int | None = None
) -> Iterator[tuple[Any, int]]:
    """Yield ``(value, end offset)`` of each whole line from ``offset`` on.

    A last line without its newline is not yielded: it is torn or still being written. A line
    that is not JSON yields ``None``, so that a caller can count damage.

    Args:
        path: file of JSON lines; a missing file yields nothing.
        offset: byte to start at, the end offset of the last line already read.
        max_bytes: stop after this many bytes.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below, once it is known to exist)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        stop = None if max_bytes is None else offset + max_bytes
        while stop is None or offset < stop:
            line = file.readline(MAX_LINE_BYTES)
            offset += len(line)
            if not line.endswith(b"\n"):
                if len(line) < MAX_LINE_BYTES:
                    return
                yield None, offset
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield value, offset
