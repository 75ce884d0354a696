"""Compile a plugin's C++ once, keep the product, and load it from then on.

Products live in ``$TRACELENS_CACHE`` (default ``$XDG_CACHE_HOME/tracelens``, else
``~/.cache/tracelens``), one folder for every combination of sources, compiler and framework.
Two processes that build at once do not disturb each other: each compiles to a name of its own
and renames.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

TIMEOUT_S = 600

Loaded = TypeVar("Loaded")


class BuildError(RuntimeError):
    """A native part cannot be compiled or loaded here; the message says why in one line."""


class Once(Generic[Loaded]):
    """A native part that is loaded, and if need be compiled, at its first use in a process.

    Args:
        target: returns where the product is kept.
        load: loads the product at that path, compiling it where it is missing.
    """

    def __init__(self, target: Callable[[], Path], load: Callable[[Path], Loaded]) -> None:
        self._target = target
        self._load = load
        self._loaded: Loaded | None = None
        self._reason = ""

    def get(self) -> Loaded:
        """Return the loaded part; a build that failed once is not tried again.

        Raises:
            BuildError: there is no compiler, the platform is not supported, or the build failed.
        """
        if self._loaded is None:
            if self._reason:
                raise BuildError(self._reason)
            try:
                self._loaded = self._load(self._target())
            except BuildError as error:
                self._reason = str(error)
                raise
        return self._loaded

    def built(self) -> bool:
        """Tell whether it is already compiled."""
        return self._target().exists()


def compiler() -> str | None:
    """Return the C++ compiler that would be used, or None.

    A path in ``CXX`` at which there is no program is not passed over for another compiler:
    whoever sets it means it.
    """
    named = os.environ.get("CXX", "")
    if os.sep not in named or " " in named:
        named = shutil.which(named) or ""
    for name in (named,) if named else ("g++", "c++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    return None


def cache_directory() -> Path:
    """Return where compiled products are kept."""
    named = os.environ.get("TRACELENS_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tracelens"


def stats_directory() -> Path:
    """Return the folder of the framework-free C++ headers.

    Raises:
        BuildError: they are not installed.
    """
    spec = importlib.util.find_spec("tracelens.stats")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("tracelens.stats is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "native"


@functools.cache
def compiler_version(cxx: str) -> str:
    """Return what a compiler says its version is, ``"unknown"`` if it does not."""
    try:
        return subprocess.run(
            [cxx, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def target(name: str, file_name: str, sources: Path, facts: Sequence[object]) -> Path:
    """Return where a product is, or is to be, kept.

    Args:
        name: what its folder is called, before the digest.
        file_name: name of the product.
        sources: folder of its C++ files; the shared headers count too.
        facts: what else decides about the product: the framework's version, its ABI.
    """
    cxx = compiler()
    digest = hashlib.sha256()
    for source in sorted([*sources.glob("*.[ch]*"), *stats_directory().glob("*.[hi]*")]):
        digest.update(source.name.encode() + source.read_bytes())
    known = (platform.machine(), cxx, compiler_version(cxx) if cxx else "", *facts)
    digest.update(repr(known).encode())
    return cache_directory() / f"{name}-{digest.hexdigest()[:20]}" / file_name


def load_extension(
    name: str, product: Path, command: Callable[[str, Path], Sequence[str]]
) -> ModuleType:
    """Return a compiled Python module, building it where it is missing.

    Args:
        name: the module's name.
        product: where it is kept.
        command: returns the command line for a compiler and an output file.

    Raises:
        BuildError: it cannot be built or loaded.
    """
    if not product.exists():
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            raise BuildError("Python's headers are missing; install the python3-dev package")
        build(product, command)
    spec = importlib.util.spec_from_file_location(name, product)
    if spec is None or spec.loader is None:
        raise BuildError(f"{product} cannot be loaded")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise BuildError(f"{product} cannot be loaded: {error}; delete it to rebuild") from error
    return module


def build(product: Path, command: Callable[[str, Path], Sequence[str]]) -> None:
    """Compile a product.

    Args:
        product: where it is to be.
        command: returns the command line for a compiler and an output file.

    Raises:
        BuildError: no compiler, an unsupported platform, no room, or the compiler failed.
    """
    if not sys.platform.startswith("linux"):
        raise BuildError(f"native parts are built on Linux only, this is {sys.platform}")
    cxx = compiler()
    if cxx is None:
        raise BuildError("no C++ compiler found; install g++ or clang++, or set CXX")
    try:
        product.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".so", dir=product.parent)
        os.close(handle)
    except OSError as error:
        raise BuildError(
            f"cannot write to {cache_directory()}: {error.strerror}; set TRACELENS_CACHE"
        ) from error
    output = Path(name)
    try:
        done = subprocess.run(
            command(cxx, output), capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            raise BuildError(f"{cxx} failed: {(lines or ['no message'])[0][:300]}")
        output.replace(product)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{cxx} could not be run: {error}") from error
    finally:
        output.unlink(missing_ok=True)
