"""Gives the bytes of a profile's file in pieces: plain or packed, alone or in a tar or zip archive.

A packed file that is cut off gives what came before the cut; that it was cut is told at the end.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tracelens.errors import TraceError

PIECE_BYTES = 4 << 20
"""Unpacked bytes handed out at a time; what is decoded of them is what is held."""

_READ_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_JSON_NAMES = (".json", ".json.gz")


class CutOffError(Exception):
    """A packed file ends too early, or is damaged; what came before was handed out."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of JSON, perhaps inside an archive.

    Attributes:
        name: as messages name it.
        path: the file on disk.
        member: its name in the archive, empty if there is none.
    """

    name: str
    path: Path
    member: str = ""

    def pieces(self, told: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """Yield the file's bytes, unpacked.

        Args:
            told: called with the bytes that were read of the file on disk.

        Raises:
            CutOffError: it is packed and damaged, after what came before was yielded.
            TraceError: it cannot be read.
        """
        try:
            if self.member:
                yield from _member_pieces(self.path, self.member)
                return
            with open(self.path, "rb") as file:
                yield from unpacked(file, told)
        except OSError as error:
            raise TraceError(f"{self.name}: cannot be read: {error.strerror or error}") from None


def sources(path: Path) -> list[Source]:
    """Return the files of JSON at a path: itself, or those in the archive that it is.

    Raises:
        TraceError: it cannot be read, or is an archive without any.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4)
        if head == _ZIP:
            with zipfile.ZipFile(path) as archive:
                names = [each.filename for each in archive.infolist() if not each.is_dir()]
        elif _is_tar(path):
            with tarfile.open(path) as tar:
                names = [each.name for each in tar if each.isfile()]
        else:
            return [Source(str(path), path)]
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        told = getattr(error, "strerror", None) or error
        raise TraceError(f"{path}: cannot be read: {told}") from None
    wanted = [name for name in sorted(names) if name.endswith(_JSON_NAMES)]
    if not wanted:
        raise TraceError(f"{path}: an archive without any .json file")
    return [Source(f"{path.name}:{name}", path, name) for name in wanted]


def unpacked(file: IO[bytes], told: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """Yield what is in an open file, unpacked if it is gzip's, about ``PIECE_BYTES`` at a time.

    Raises:
        CutOffError: it is packed and damaged.
    """
    head = file.read(2)
    if head == _GZIP:
        yield from _gunzip(file, head + file.read(_READ_BYTES), told)
        return
    piece = head + file.read(PIECE_BYTES)
    done = 0
    while piece:
        done += len(piece)
        if told is not None:
            told(done)
        yield piece
        piece = file.read(PIECE_BYTES)


def _gunzip(file: IO[bytes], packed: bytes, told: Callable[[int], None] | None) -> Iterator[bytes]:
    """Unpack gzip members one after the other."""
    done = 0
    decoder = _decoder()
    while packed:
        done += len(packed)
        if told is not None:
            told(done)
        while packed:
            if decoder.eof:
                packed = packed.lstrip(b"\0")
                if not packed:
                    break
                decoder = _decoder()
            try:
                piece = decoder.decompress(packed, PIECE_BYTES)
            except Exception as error:  # zlib's and isal's errors have no common parent
                raise CutOffError(f"the packed data is damaged ({error})") from None
            if piece:
                yield piece
            packed = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        packed = file.read(_READ_BYTES)
    if not decoder.eof:
        raise CutOffError("the packed file is cut off")


def _decoder() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.decompressobj(wbits=31)
    return isal_zlib.decompressobj(wbits=31)


def _is_tar(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith((".tar", ".tgz", ".tar.gz")) and tarfile.is_tarfile(path)


def _member_pieces(path: Path, member: str) -> Iterator[bytes]:
    try:
        if _is_tar(path):
            with tarfile.open(path) as tar:
                file = tar.extractfile(member)
                if file is not None:
                    with file:
                        yield from unpacked(file)
            return
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield from unpacked(file)
    except (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise CutOffError(f"the archive is damaged ({error})") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in another way
        raise TraceError(f"{path.name}:{member}: cannot be unpacked: {error}") from None
