"""A trace that is made beside its final place and moved there when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracelens.errors import ConfigError, TraceLensError


@contextmanager
def fresh_trace(out_path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a directory to write a trace into, which appears at ``out_path`` if all goes well.

    Args:
        out_path: where the trace is wanted.
        force: replace a trace that is there.

    Raises:
        ConfigError: there is something already.
        TraceLensError: it cannot be written.
    """
    if out_path.exists() and not force:
        raise ConfigError(f"{out_path} already exists: choose another path, or pass --force")
    if out_path.exists() and not (out_path / "manifest.json").exists():
        raise ConfigError(f"{out_path} is no trace, and is not replaced: choose another path")
    temporary = out_path.with_name(f".tmp-{os.getpid()}-{out_path.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out_path.exists():
            shutil.rmtree(out_path)
        temporary.replace(out_path)
    except OSError as error:
        raise TraceLensError(f"cannot write {out_path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
