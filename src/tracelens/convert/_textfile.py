"""Opens a recording's text, packed or not, with a limit on what it may unpack to."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from tracelens.errors import TraceError

BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What ``msgspec.json.decode`` raises for text that is not what it should be."""
MAX_BYTES = 2 << 30
"""What is read whole at most: a recording that is larger has to be cut by its tool."""
MAX_UNPACKED_BYTES = 512 << 20
"""The same of a packed file, which may be small itself."""
_HEAD_BYTES = 1 << 16
_LINE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


def beginning(path: Path) -> bytes:
    """Return the first 64 KiB of a file, unpacked; empty if it cannot be read."""
    try:
        with open_bytes(path) as file:
            return file.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, unpacking it if it is gzip's.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP
    return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]


def lines(path: Path, problems: list[str]) -> Iterator[bytes]:
    """Yield a file's lines, those of more than 1 MiB in pieces.

    Args:
        path: the file.
        problems: told if it cannot be read to its end.
    """
    try:
        with open_bytes(path) as file:
            while line := file.readline(_LINE_BYTES):
                yield line
    except (OSError, EOFError, zlib.error) as error:
        problems.append(f"{path.name}: damaged or cut off ({error}): what came before is kept")


def whole(path: Path) -> bytes:
    """Return all of a file, unpacked; of a packed one that is cut off, what there is.

    Raises:
        TraceError: it cannot be read, or is too large.
    """
    parts: list[bytes] = []
    size = 0
    try:
        with open_bytes(path) as file:
            most = MAX_UNPACKED_BYTES if isinstance(file, gzip.GzipFile) else MAX_BYTES
            while part := file.read(1 << 20):
                size += len(part)
                if size > most:
                    raise TraceError(
                        f"{path}: more than {most >> 20} MiB, too much to read at once"
                    )
                parts.append(part)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error):
        pass  # what follows finds the text torn, and says so
    return b"".join(parts)
