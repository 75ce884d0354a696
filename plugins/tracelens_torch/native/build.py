"""Compile the observer once per torch, Python, compiler and source, and load it.

The product lives in ``$TRACELENS_CACHE`` (default ``$XDG_CACHE_HOME/tracelens``, else
``~/.cache/tracelens``). Two processes that build at once do not disturb each other: each
compiles to a name of its own and renames.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch

MODULE = "tracelens_observer"
_SOURCES = Path(__file__).parent
_loaded: Any = None
_reason = ""


class BuildError(RuntimeError):
    """The observer cannot be compiled or loaded here; the message says why in one line."""


def compiler() -> str | None:
    """Return the C++ compiler that would be used, or None."""
    named = os.environ.get("CXX")
    for name in (named, "g++", "c++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def cache_directory() -> Path:
    """Return where compiled observers are kept."""
    named = os.environ.get("TRACELENS_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tracelens"


def load() -> Any:
    """Return the compiled module, building it if need be.

    Raises:
        BuildError: there is no compiler, the platform is not supported, or the build failed.
    """
    global _loaded, _reason
    if _loaded is None:
        if _reason:
            raise BuildError(_reason)
        try:
            _loaded = _load(_target(compiler()))
        except BuildError as error:
            _reason = str(error)
            raise
    return _loaded


def built() -> bool:
    """Tell whether the observer is already compiled for this torch and Python."""
    return _target(compiler()).exists()


def _stats_directory() -> Path:
    spec = importlib.util.find_spec("tracelens.stats")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("tracelens.stats is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "native"


def _target(cxx: str | None) -> Path:
    digest = hashlib.sha256()
    for source in sorted([*_SOURCES.glob("*.[ch]*"), *_stats_directory().glob("*.[hi]*")]):
        digest.update(source.name.encode() + source.read_bytes())
    version = ""
    if cxx:
        try:
            version = subprocess.run(
                [cxx, "-dumpfullversion", "-dumpversion"],
                capture_output=True,
                text=True,
                timeout=20,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            version = "unknown"
    facts = (
        torch.__version__, sys.implementation.cache_tag, platform.machine(), cxx, version,
        torch._C._GLIBCXX_USE_CXX11_ABI, os.environ.get("TRACELENS_PUBLIC_FRAMES", ""),
    )  # fmt: skip
    digest.update(repr(facts).encode())
    suffix = importlib.machinery.EXTENSION_SUFFIXES[-1]
    return cache_directory() / f"{MODULE}-{digest.hexdigest()[:20]}" / (MODULE + suffix)


def _load(target: Path) -> Any:
    if not target.exists():
        _build(target)
    spec = importlib.util.spec_from_file_location(MODULE, target)
    if spec is None or spec.loader is None:
        raise BuildError(f"{target} cannot be loaded")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise BuildError(f"{target} cannot be loaded: {error}; delete it to rebuild") from error
    return module


def command(cxx: str, output: Path) -> list[str]:
    """Return the compiler's command line."""
    root = Path(torch.__file__).parent
    command = [
        cxx, "-O3", "-DNDEBUG", "-shared", "-fPIC", "-std=c++20", "-w",
        f"-DTORCH_EXTENSION_NAME={MODULE}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-I{_SOURCES}", f"-I{_stats_directory()}",
        f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}",
        f"-I{sysconfig.get_path('include')}",
        str(_SOURCES / "bindings.cpp"), "-o", str(output),
        f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python",
    ]  # fmt: skip
    if os.environ.get("TRACELENS_PUBLIC_FRAMES"):
        command.insert(1, "-DTRACELENS_PUBLIC_FRAMES")
    return command


def _build(target: Path) -> None:
    cxx = compiler()
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the native observer is built on Linux only, this is {sys.platform}")
    if cxx is None:
        raise BuildError("no C++ compiler found; install g++ or clang++, or set CXX")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise BuildError("Python's headers are missing; install the python3-dev package")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise BuildError(
            f"cannot write to {cache_directory()}: {error.strerror}; set TRACELENS_CACHE"
        ) from error
    output = Path(name)
    try:
        done = subprocess.run(command(cxx, output), capture_output=True, text=True, timeout=600)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            raise BuildError(f"{cxx} failed: {(lines or ['no message'])[0][:300]}")
        output.replace(target)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{cxx} could not be run: {error}") from error
    finally:
        output.unlink(missing_ok=True)
