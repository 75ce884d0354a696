"""Writing an export: never over an existing file, never half a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracelens.errors import ConfigError, TraceLensError


@contextmanager
def new_file(out_path: str | os.PathLike[str], *, force: bool) -> Iterator[Path]:
    """Yield a temporary path that becomes ``out_path`` when the block ends without an error.

    Raises:
        ConfigError: ``out_path`` exists and ``force`` is false, or it is a directory.
        TraceLensError: it cannot be written (no such folder, read-only, disk full).
    """
    target = Path(out_path)
    refuse_existing(target, force=force)
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        try:
            yield temporary
            temporary.replace(target)
        except OSError as error:
            raise TraceLensError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(out_path: str | os.PathLike[str], *, force: bool) -> Iterator[Path]:
    """As ``new_file``, for an export of several files; ``force`` replaces the whole directory.

    Raises:
        ConfigError: ``out_path`` exists and ``force`` is false, or it is a file.
        TraceLensError: it cannot be written.
    """
    target = Path(out_path)
    if target.exists() and not force:
        raise ConfigError(f"{target} already exists: choose another path, or pass force (--force)")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file: this export writes a directory")
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        try:
            temporary.mkdir()
            yield temporary
            if target.exists():
                shutil.rmtree(target)
            temporary.replace(target)
        except OSError as error:
            raise TraceLensError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise ``ConfigError`` if ``target`` may not be written as a file."""
    if str(target) == "-":
        raise ConfigError("- is no file: give a file name (this is not written to stdout)")
    if target.is_dir():
        raise ConfigError(f"{target} is a directory: give a file name")
    if target.exists() and not force:
        raise ConfigError(f"{target} already exists: choose another path, or pass force (--force)")
